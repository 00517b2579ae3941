// One response: its tokens with their colours, built a piece at a time, each as long as all before it, and the facts of the token
// that is pointed at.

const PIECE = 1500;
const factsBox = document.getElementById("facts");
let current = null;

function transcript(each, sought) {
  const body = element("div");
  body.append(askedOf(each), badgesOf(each));
  const response = element("div", "response");
  response.tabIndex = 0;
  response.setAttribute("role", "group");
  response.setAttribute("aria-label", "Response; arrow keys move from token to token, n and p between selected ones");
  response.each = each;
  response.matches = matchesOf(each, sought);
  body.append(response);
  addPiece(response);
  const cut = columns.length[each] - columns.shown[each];
  if (cut) body.append(element("p", "note cut", `${whole(cut)} more tokens are left out.`));
  return body;
}

function askedOf(each) {
  const asked = element("div", "asked");
  const [prompt, answer] = prompts[columns.prompt[each]];
  for (const [name, text] of [["prompt", prompt], ["answer", answer]]) {
    const part = element("div");
    part.append(element("span", "eyebrow", name), element("div", "prompt", text));
    asked.append(part);
  }
  return asked;
}

function badgesOf(each) {
  const { reward, reason, advantage, finish, length, selected, mean, sample } = columns;
  const texts = [reward[each] === null ? "no reward" : `reward ${short(reward[each])}`];
  if (reason[each]) texts.push(`verifier: ${reason[each]}`);
  if (advantage[each] !== null) texts.push(`advantage ${short(advantage[each])}`);
  texts.push(`finished by ${finishes[finish[each]]}`);
  const trained = kinds[columns.kind[each]] === "trained" ? `, ${whole(selected[each])} selected` : "";
  texts.push(`${whole(length[each])} tokens${trained}`);
  texts.push(mean[each] === null ? "entropy not measured" : `mean entropy ${mean[each].toFixed(3)} nats`);
  if (sample[each] !== null) texts.push(`sample ${sample[each]}`);
  const badges = element("div", "badges");
  badges.append(...texts.map((text) => element("span", "", text)));
  return badges;
}

// Places in the written text where a search was found: [first, last) of each.
function matchesOf(each, sought) {
  const found = [];
  if (!sought) return found;
  const text = writtenText(each);
  for (let first = text.indexOf(sought); first >= 0 && found.length < 1000; first = text.indexOf(sought, first + 1)) {
    found.push([first, first + sought.length]);
  }
  return found;
}

function addPiece(response) {
  const { each } = response;
  const first = starts[each] + response.childElementCount;
  const last = Math.min(first + Math.max(PIECE, response.childElementCount), starts[each + 1]);
  let offset = response.letters ?? 0, match = response.match ?? 0;
  const piece = document.createDocumentFragment();
  for (let place = first; place < last; place++) {
    const text = data.vocabulary[arrays.numbers[place]];
    const end = offset + text.toLowerCase().length;
    while (match < response.matches.length && response.matches[match][1] <= offset) match++;
    const matched = match < response.matches.length && response.matches[match][0] < end;
    piece.append(tokenOf(place, text, columns.measured[each], matched && end > offset));
    offset = end;
  }
  response.letters = offset;
  response.match = match;
  response.append(piece);
  response.parentElement.querySelector("button.more")?.remove();
  const rest = starts[each + 1] - last;
  if (!rest) return;
  const next = Math.min(rest, response.childElementCount);
  const button = element("button", "more", `${whole(next)} of ${whole(rest)} more tokens`);
  button.type = "button";
  button.addEventListener("click", () => {
    const following = response.childElementCount;
    addPiece(response);
    point(response, response.children[following]);
    response.focus({ preventScroll: true });
  });
  response.after(button);
}

function tokenOf(place, text, measured, matched) {
  const span = document.createElement("span");
  span.textContent = inText(text);
  const names = [];
  if (measured) {
    const entropy = nats(arrays.entropies[place]);
    names.push(Number.isFinite(entropy) ? `level-${levelOf(entropy)}` : "unknown");
  }
  if (isSelected(place)) names.push("selected");
  if (matched) names.push("matched");
  span.className = names.join(" ");
  return span;
}

function factsOf(response, span) {
  const { each } = response;
  const number = placeIn(response, span), place = starts[each] + number;
  const lines = [inTable(data.vocabulary[arrays.numbers[place]])];
  const code = arrays.entropies[place];
  if (columns.measured[each]) {
    lines.push(code ? `entropy ${short(nats(code))} nats, rank ${whole(rankOf(response, code))} of ${whole(columns.shown[each])}` :
      "entropy not finite");
  }
  const surprisal = nats(arrays.surprisals[place]);
  lines.push(Number.isNaN(surprisal) ? "log-prob not known" :
    `log-prob ${short(surprisal ? -surprisal : 0)}, probability ${short(Math.exp(-surprisal))}`);
  lines.push(`token ${whole(number + 1)} of ${whole(columns.length[each])}`);
  if (isSelected(place)) lines.push("selected: carried gradient");
  return lines.join("\n");
}

// 1 for the highest entropy of the response.
function rankOf(response, code) {
  response.sorted ??= arrays.entropies.slice(starts[response.each], starts[response.each + 1]).sort();
  let low = 0, high = response.sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (response.sorted[middle] <= code) low = middle + 1;
    else high = middle;
  }
  return response.sorted.length - low + 1;
}

function placeIn(response, span) {
  return Array.prototype.indexOf.call(response.children, span);
}

function point(response, span) {
  current?.classList.remove("current");
  current = span ?? null;
  factsBox.hidden = !current;
  if (!current) return;
  current.classList.add("current");
  factsBox.textContent = factsOf(response, current);
  const around = current.getClientRects()[0] ?? current.getBoundingClientRect();
  const box = factsBox.getBoundingClientRect();
  const below = around.bottom + 6, room = window.innerHeight - box.height - 8;
  factsBox.style.left = `${Math.max(8, Math.min(around.left, document.documentElement.clientWidth - box.width - 8))}px`;
  factsBox.style.top = `${below <= room ? below : Math.max(8, around.top - box.height - 6)}px`;
}

function tokenAt(event) {
  const response = event.target.closest?.(".response");
  return response && event.target !== response ? [response, event.target] : null;
}

document.addEventListener("pointerover", (event) => {
  if (event.pointerType === "touch") return;
  const found = tokenAt(event);
  if (found) point(...found);
  else if (current && document.activeElement !== current.parentElement) point(null, null);
});
document.addEventListener("click", (event) => {
  const found = tokenAt(event);
  if (found) point(...found);
  else if (!event.target.closest?.("button.more")) point(null, null);
});
document.addEventListener("scroll", () => current && point(current.parentElement, current), { passive: true });
document.addEventListener("focusout", (event) => {
  if (event.target.classList?.contains("response")) point(null, null);
});
document.addEventListener("keydown", (event) => {
  const response = event.target;
  if (!response.classList?.contains("response") || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") return point(null, null);
  const next = { ArrowRight: [1, false], ArrowLeft: [-1, false], n: [1, true], p: [-1, true] }[event.key];
  if (!next) return;
  event.preventDefault();
  const [step, onlySelected] = next;
  const here = current?.parentElement === response ? placeIn(response, current) : step > 0 ? -1 : response.childElementCount;
  for (let place = here + step; place >= 0 && place < columns.shown[response.each]; place += step) {
    while (place >= response.childElementCount) addPiece(response);
    const span = response.children[place];
    if (onlySelected && !span.classList.contains("selected")) continue;
    span.scrollIntoView({ block: "nearest" });
    return point(response, span);
  }
});
