// Before the first paint, so that a chosen theme never flashes. The button is wired in dom.js.
try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // no storage: the system's choice stands
}
