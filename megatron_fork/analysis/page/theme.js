// Light or dark as the system has it, unless the reader chooses.

document.getElementById("theme").addEventListener("change", (event) => {
  document.documentElement.dataset.theme = event.target.value;
});
