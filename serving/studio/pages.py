"""The studio's pages, rendered here: they work without JavaScript, which makes them quick and lively where it is on."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from serving.refusal import Refused
from serving.studio import limits, wire
from serving.studio.app import Studio, picture_response
from serving.studio.refining import refine
from vca.feedback import dialogues, events, sharing
from vca.feedback.dialogues import RoundRequest, Words
from vca.feedback.events import Event
from vca.feedback.store import Person, new_id

HERE = Path(__file__).parent
STATIC = HERE / "static"


class Pages:
    """Renders templates. Everything is escaped but what templates write themselves."""

    def __init__(self) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._assets = {
            file.name: f"/static/{file.name}?v={hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
            for file in sorted(STATIC.iterdir())
            if file.is_file()
        }

    def html(self, name: str, *, status: int = 200, **context: Any) -> Response:
        template = self._environment.get_template(f"{name}.html.jinja")
        text = template.render(assets=self._assets, status=status, **context)
        return HTMLResponse(text, status_code=status)

    def error(self, refusal: Refused) -> Response:
        return self.html("error", status=refusal.status, message=refusal.message)


def routes(studio: Studio, pages: Pages) -> APIRouter:
    """Pages for people; forms answer with a redirect, so that a reload sends nothing twice."""
    store = studio.store
    router = APIRouter(include_in_schema=False)

    def me(person: Person) -> dict[str, Any]:
        return {"name": "you", "consent": store.consent(person)}

    @router.get("/")
    def start(request: Request) -> Response:
        person = studio.person(request)
        mine = [
            {
                "dialogue_id": one.dialogue_id,
                "url": f"/d/{one.dialogue_id}",
                "prompt": one.prompt,
                "picture": one.candidate_id and f"/v1/pictures/{one.candidate_id}",
                "created_at": one.created_at.isoformat(),
            }
            for one in dialogues.listed(store, person)
        ]
        return pages.html(
            "index", me=me(person), dialogues=mine, new_ids={"dialogue_id": new_id(), "round_id": new_id()}
        )

    @router.get("/d/{dialogue_id}")
    def dialogue(dialogue_id: events.Uuid, request: Request) -> Response:
        tree = dialogues.tree(store, studio.person(request), dialogue_id)
        return RedirectResponse(f"/d/{dialogue_id}/r/{tree.head_round_id}", status_code=307)

    @router.get("/d/{dialogue_id}/r/{round_id}")
    def round_(dialogue_id: events.Uuid, round_id: events.Uuid, request: Request) -> Response:
        person = studio.person(request)
        tree = studio.tree(person, dialogue_id)
        by_id = {one["round_id"]: one for one in tree["rounds"]}
        if round_id not in by_id:
            raise Refused("no such round", status=404, code="not_found")
        path = [by_id[round_id]]
        while path[0]["parent_round_id"]:
            path.insert(0, by_id[path[0]["parent_round_id"]])
        return pages.html(
            "dialogue",
            me=me(person),
            tree=tree,
            round=by_id[round_id],
            path=path,
            new_ids={"round_id": new_id(), "event_id": new_id()},
        )

    @router.post("/d")
    async def begin(request: Request) -> Response:
        person, form = studio.person(request), await _form(request)
        studio.rounds_per_person.take(person.subject_id)
        sent = _read(wire.NewDialogue, form, "dialogue_id", "round_id", "prompt")
        words = _read(Words, {"prompt": sent.prompt}, "prompt")
        first = RoundRequest(round_id=sent.round_id, words=words, pictures=studio.settings.pictures)
        await asyncio.to_thread(dialogues.begin, store, person, dialogue_id=sent.dialogue_id, first=first)
        studio.drawing.wake()
        return RedirectResponse(f"/d/{sent.dialogue_id}/r/{sent.round_id}", status_code=303)

    @router.post("/d/{dialogue_id}/r/{round_id}")
    async def act(dialogue_id: events.Uuid, round_id: events.Uuid, request: Request) -> Response:
        """A form's buttons: action = pick, tie_good, all_bad, accept, undo, or next (the next round)."""
        person, form = studio.person(request), await _form(request)
        tree = await asyncio.to_thread(studio.tree, person, dialogue_id)
        shown = next((one for one in tree["rounds"] if one["round_id"] == round_id), None)
        if shown is None:
            raise Refused("no such round", status=404, code="not_found")
        action, there = form.get("action", "next"), round_id
        if action == "undo":
            there = shown["parent_round_id"] or round_id
            await asyncio.to_thread(dialogues.go_to, store, person, dialogue_id=dialogue_id, round_id=there)
        elif action in ("pick", "tie_good", "all_bad", "accept"):
            await asyncio.to_thread(_choose, studio, person, shown, action, form)
        elif action == "next":
            there = await _next(studio, person, dialogue_id, shown, form)
        else:
            raise Refused(f"action {action[:20]!r}: no such button", status=422, param="action")
        return RedirectResponse(f"/d/{dialogue_id}/r/{there}", status_code=303)

    @router.get("/s/{token}")
    def shared(token: str) -> Response:
        person, dialogue_id = sharing.followed(store, token)
        tree = dialogues.tree(store, person, dialogue_id)
        said, seen = events.said(store, person, dialogue_id), events.presented(store, person, dialogue_id)
        path = tree.path(tree.head_round_id)
        rounds = []
        for one, after in zip(path, [*path[1:], None], strict=True):
            choice = wire.choice_of(one.round_id, said, seen)
            wanted = [after.parent_candidate_id] if after else []  # what the next round was made from, or what is liked
            wanted += choice["target"] if choice and choice["kind"] != "all_bad" else []
            ready = [picture.candidate_id for picture in one.candidates if picture.state == "ready"]
            best = next((picture for picture in [*wanted, *ready] if picture in ready), None)
            if best is not None:
                rounds.append({"prompt": one.words.prompt, "picture": f"/s/{token}/{best}"})
        response = pages.html("share", rounds=rounds)
        response.headers["X-Robots-Tag"] = "noindex, nofollow"
        return response

    @router.get("/s/{token}/{candidate_id}")
    def shared_picture(token: str, candidate_id: events.Uuid) -> Response:
        person, dialogue_id = sharing.followed(store, token)
        path = dialogues.tree(store, person, dialogue_id)
        digests = {
            picture.candidate_id: picture.image_sha256
            for one in path.path(path.head_round_id)
            for picture in one.candidates
            if picture.state == "ready"
        }
        response = picture_response(store, digests.get(candidate_id))
        response.headers.update({"Cache-Control": "private, no-store", "X-Robots-Tag": "noindex"})  # it can be revoked
        return response

    return router


def _choose(studio: Studio, person: Person, shown: dict[str, Any], action: str, form: dict[str, str]) -> None:
    seen = shown["presentation"]
    if seen is None:
        raise Refused("there is nothing to choose from yet", status=422)
    wanted = [form["choice"]] if action in ("pick", "accept") and "choice" in form else seen["slots"]
    fields = {"event_id": form.get("event_id", ""), "presentation_id": seen["presentation_id"], "kind": action}
    previous = shown["choice"]
    if previous is not None and previous["event_id"] != form.get("event_id"):
        fields["supersedes"] = previous["event_id"]
    event = _read(Event, {**fields, "target": wanted, "input": "mouse"}, *fields, "target", "input")
    studio.events_per_person.take(person.subject_id)
    studio.recorder.record(person, event)


async def _next(studio: Studio, person: Person, dialogue_id: str, shown: dict[str, Any], form: dict[str, str]) -> str:
    """Refine, then draw, in one go: without JavaScript there is no page between the two."""
    studio.rounds_per_person.take(person.subject_id)
    said = form.get("critique", "").strip()
    made = None
    if said:
        made = await refine(studio.generator, prompt=shown["prompt"], feedback=said, history=[], patient=True)
    choice = form.get("choice") or None
    fields: dict[str, Any] = {
        "round_id": form.get("round_id", ""),
        "parent_round_id": shown["round_id"],
        "parent_candidate_id": choice,
        "critique": said,
        "prompt": made["refined_prompt"] if made else shown["prompt"],
        "prompt_refined": made["refined_prompt"] if made else "",
        "notice": made and made["notice"],
        "truncated": tuple(made["truncated"]) if made else (),
        "strength": float(form.get("strength") or 0.6) if choice else None,
        "locked": bool(choice) and form.get("locked") == "on",
    }
    sent = _read(wire.NewRound, fields, *fields)
    request = _read(RoundRequest, sent.request(studio.settings).model_dump(), *RoundRequest.model_fields)
    await asyncio.to_thread(dialogues.ask, studio.store, person, dialogue_id=dialogue_id, request=request)
    studio.drawing.wake()
    return str(sent.round_id)


async def _form(request: Request) -> dict[str, str]:
    """The fields of an HTML form, the first value of each."""
    try:
        text = (await request.body()).decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("the form is no text", status=422) from None
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True, max_num_fields=50).items()}


def _read(model: Any, fields: dict[str, Any], *names: str) -> Any:
    from pydantic import ValidationError

    try:
        return model.model_validate({name: fields[name] for name in names if name in fields})
    except ValidationError as error:
        raise limits.invalid(error.errors()) from None
