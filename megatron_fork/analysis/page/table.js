// The table of tokens by mean entropy: sorted by any column, and filtered by text and count.

const TABLE_ROWS = 20;
const panel = document.getElementById("table");

if (panel && data.table.tokens.length) {
  const { tokens, counts, entropies, selected } = data.table;
  const body = panel.querySelector("tbody"), more = panel.querySelector(".more");
  const texts = tokens.map((number) => data.vocabulary[number]);
  const text = control("table-text"), count = control("table-count");
  const values = { counts, entropies, selected };
  let sorted = "entropies", rising = false, rows = [], shown = TABLE_ROWS;

  const compare = (one, other) => {
    const found = sorted === "token" ? (texts[one] < texts[other] ? -1 : Number(texts[one] > texts[other])) :
      values[sorted][one] - values[sorted][other];
    return (rising ? found : -found) || one - other;
  };

  const rowOfToken = (place) => {
    const row = element("tr"), token = element("td"), swatch = element("span", `swatch level-${levelOf(entropies[place])}`);
    const button = element("button");
    button.type = "button";
    button.append(element("code", "", inTable(texts[place])));
    button.addEventListener("click", () => find(texts[place].split("\n")[0]));
    const named = element("div", "named");
    named.append(swatch, button);
    token.append(named);
    const numbers = [whole(counts[place]), entropies[place].toFixed(4), `${(100 * selected[place]).toFixed(1)} %`];
    row.append(token, ...numbers.map((number) => element("td", "", number)));
    return row;
  };

  const show = () => {
    const wanted = text.value.toLowerCase(), least = Number(count.value) || 0;
    rows = texts.map((_, place) => place)
      .filter((place) => counts[place] >= least && inTable(texts[place]).toLowerCase().includes(wanted.replaceAll(" ", "␣")));
    rows.sort(compare);
    body.replaceChildren(...rows.slice(0, shown).map(rowOfToken));
    more.hidden = rows.length <= shown;
    panel.querySelector(".found").textContent = `${whole(Math.min(shown, rows.length))} of ${whole(rows.length)} tokens`;
  };

  for (const button of panel.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      rising = sorted === button.dataset.column ? !rising : button.dataset.column === "token";
      sorted = button.dataset.column;
      for (const head of panel.querySelectorAll("th")) head.removeAttribute("aria-sort");
      button.parentElement.setAttribute("aria-sort", rising ? "ascending" : "descending");
      show();
    });
  }
  for (const field of [text, count]) {
    field.addEventListener("input", () => {
      shown = TABLE_ROWS;
      show();
    });
  }
  more.addEventListener("click", () => {
    shown += 5 * TABLE_ROWS;
    show();
  });
  panel.hidden = false;
  show();
}
