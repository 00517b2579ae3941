// The list of responses: filters, search and order; a response's tokens are built when it is opened, and dropped when it is closed.

const ROWS = 25;
const KIND_NAMES = {
  trained: "trained on", without_signal: "without signal", evaluation: "evaluation", generated: "generated", given: "given",
};
const filters = document.getElementById("filters");
const list = document.getElementById("list");
const control = (name) => document.getElementById(name);
let matching = [], sought = "";

function fill(select, options) {
  select.append(...[["", "any"], ...options].map(([value, label]) => {
    const option = element("option", "", label);
    option.value = value;
    return option;
  }));
  select.closest("label").hidden = options.length < 2;
}

const brief = (text, longest) => {
  const line = text.replaceAll(/\s+/g, " ").trim();
  return line.length > longest ? `${line.slice(0, longest)}…` : line;
};
// Of a template's words before the question, which all prompts begin with, a list shows nothing: characters, up to a whole word.
const template = (() => {
  const [first = ""] = prompts.map(([prompt]) => prompt);
  let same = prompts.length > 1 ? first.length : 0;
  for (const [prompt] of prompts) {
    let here = 0;
    while (here < same && prompt[here] === first[here]) here += 1;
    same = here;
  }
  const words = first.slice(0, same).search(/\S*$/);
  return words < 24 ? 0 : words;
})();
const question = (prompt, longest) => (template ? "…" : "") + brief(prompt.slice(template), longest);
const distinct = (values) => [...new Set(values)].filter((value) => value !== null).sort((one, other) => one - other);

function fillFilters() {
  fill(control("by-set"), sets.map((name, place) => [place, brief(name, 60) || "(no name)"]));
  fill(control("by-kind"), kinds.map((name, place) => [place, KIND_NAMES[name]]));
  fill(control("by-step"), distinct(columns.step).map((step) => [step, String(step)]));
  const verdicts = distinct(columns.verdict).map((verdict) => [`v${verdict}`, data.verdicts[verdict]]);
  const rewards = distinct(columns.reward);
  const values = rewards.length <= 12 ? rewards.map((reward) => [`r${reward}`, `= ${short(reward)}`]) : [];
  fill(control("by-reward"), verdicts.length + values.length > 2 ? [...verdicts, ...values] : []);
  fill(control("by-prompt"), prompts.map(([prompt], place) => [place, `${place + 1}: ${question(prompt, 70)}`]));
}

function isWanted(each) {
  const is = (name, values) => control(name).value === "" || control(name).value === String(values[each]);
  const reward = control("by-reward").value;
  return is("by-set", columns.set) && is("by-kind", columns.kind) && is("by-step", columns.step) &&
    is("by-prompt", columns.prompt) &&
    (reward === "" || reward === `v${columns.verdict[each]}` || reward === `r${columns.reward[each]}`) &&
    (sought === "" || searchedText(each).includes(sought));
}

const ORDERS = {
  mean: (one, other) => (columns.mean[other] ?? -1) - (columns.mean[one] ?? -1),
  longest: (one, other) => columns.length[other] - columns.length[one],
  shortest: (one, other) => columns.length[one] - columns.length[other],
};

function filterList() {
  sought = control("search").value.toLowerCase();
  matching = Array.from({ length: responses }, (_, each) => each).filter(isWanted);
  const order = ORDERS[control("order").value];
  if (order) matching.sort(order);
  control("found").textContent = matching.length === responses ?
    `${whole(responses)} responses` : `${whole(matching.length)} of ${whole(responses)} responses`;
  point(null, null);
  list.replaceChildren();
  addRows();
  if (matching.length) toggle(list.firstElementChild);
}

function addRows() {
  const first = list.childElementCount;
  list.append(...matching.slice(first, first + ROWS).map(rowOf));
  control("more").hidden = list.childElementCount >= matching.length;
  control("more").textContent = `${whole(matching.length - list.childElementCount)} more responses`;
}

function rowOf(each) {
  const row = element("article", "panel transcript");
  row.each = each;
  const button = element("button", "opener");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  const verdict = columns.verdict[each];
  button.append(element("span", `verdict verdict-${verdict}`, ["✓ right", "✕ wrong", "not judged"][verdict]));
  if (columns.step[each] !== null) button.append(element("span", "", `step ${columns.step[each]}`));
  if (sets.length > 1) button.append(element("span", "", brief(sets[columns.set[each]], 40)));
  if (kinds.length > 1 || kinds[0] !== "generated") button.append(element("span", "", KIND_NAMES[kinds[columns.kind[each]]]));
  button.append(element("span", "asks", question(prompts[columns.prompt[each]][0], 160)));
  button.append(element("span", "", `${whole(columns.length[each])} tokens`));
  if (columns.mean[each] !== null) button.append(element("span", "", `${columns.mean[each].toFixed(3)} nats`));
  button.addEventListener("click", () => toggle(row));
  row.append(button);
  return row;
}

function toggle(row) {
  const button = row.firstElementChild, opens = row.childElementCount === 1;
  button.setAttribute("aria-expanded", String(opens));
  if (opens) row.append(transcript(row.each, sought));
  else {
    point(null, null);
    row.lastElementChild.remove();
  }
}

function find(text) {
  filters.reset();
  control("search").value = text;
  filterList();
  filters.scrollIntoView();
  control("search").focus({ preventScroll: true });
}

if (filters) {
  let waiting = 0;
  fillFilters();
  filters.hidden = false;
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("change", (event) => event.target.id !== "search" && filterList());
  filters.addEventListener("reset", () => setTimeout(filterList));
  control("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filterList, 150);
  });
  control("more").addEventListener("click", addRows);
  filterList();
}
