// The responses of the page: facts by column, and of each token its number in the vocabulary, entropy and surprisal.

const data = JSON.parse(document.getElementById("data").textContent);
const arrays = decoded(document.getElementById("arrays").textContent);
const { columns = {}, prompts, sets, kinds, finishes } = data.responses;
const responses = columns.length ? columns.length.length : 0;
const starts = new Uint32Array(responses + 1);
for (let each = 0; each < responses; each++) starts[each + 1] = starts[each] + columns.shown[each];

function decoded(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let place = 0; place < bytes.length; place++) bytes[place] = binary.charCodeAt(place);
  const count = data.tokens, width = data.wide ? 4 : 2;
  const numbers = data.wide ? new Uint32Array(bytes.buffer, 0, count) : new Uint16Array(bytes.buffer, 0, count);
  const entropies = new Uint16Array(bytes.buffer, width * count, count);
  const surprisals = new Uint16Array(bytes.buffer, (width + 2) * count, count);
  return { numbers, entropies, surprisals, selected: bytes.subarray((width + 4) * count) };
}

// Nats of a code; NaN if it is not known.
function nats(code) {
  if (code < 2) return code ? 0 : NaN;
  return code === data.codes.infinite ? Infinity : data.codes.lowest * Math.exp((code - 2) * data.codes.step);
}

function isSelected(place) {
  return (arrays.selected[place >> 3] >> (place & 7)) & 1;
}

function levelOf(entropy) {
  return Math.min(Math.floor((entropy / data.scale.top) * data.scale.levels), data.scale.levels - 1);
}

// A line break is marked and still breaks the line.
const inText = (token) => token.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥");
const inTable = (token) =>
  token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "(empty)";
const whole = (number) => number.toLocaleString("en");
const short = (number) => (Number.isFinite(number) ? String(Number(number.toPrecision(4))) : String(number));

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// The text of a response as it is written on the page, in lower case.
const written = [];
function writtenText(each) {
  if (written[each] === undefined) {
    let text = "";
    for (let place = starts[each]; place < starts[each + 1]; place++) text += data.vocabulary[arrays.numbers[place]];
    written[each] = text.toLowerCase();
  }
  return written[each];
}

// What a search looks into: the same, with characters that are spread over several tokens put together.
const searched = [];
function searchedText(each) {
  if (searched[each] === undefined) {
    const [prompt, answer] = prompts[columns.prompt[each]];
    const text = writtenText(each).replace(/(?:⟨0x[0-9a-f]{2}⟩)+/g, (bytes) => {
      const values = bytes.match(/[0-9a-f]{2}(?=⟩)/g).map((digits) => parseInt(digits, 16));
      return new TextDecoder().decode(new Uint8Array(values));
    });
    searched[each] = [text, prompt.toLowerCase(), answer.toLowerCase(), columns.reason[each].toLowerCase()].join("\n");
  }
  return searched[each];
}
