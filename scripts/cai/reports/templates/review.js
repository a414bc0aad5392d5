// The review page. What a model wrote is put on the screen through text alone, never as markup.
// Only the rows in sight are in the page, and only the open example is compared word by word.

const $ = (id) => document.getElementById(id);
const DIFFS = ["both", "inline", "off"];
const DIFF_NAMES = { both: "marked in both texts", inline: "in one text", off: "not marked" };
const ANSWERS = { // key: [question, answer]
  y: ["critique_meaningful", true], n: ["critique_meaningful", false],
  r: ["revision_better", "revision"], t: ["revision_better", "tie"], f: ["revision_better", "first"],
};
const OWN = new Set( // what the page places itself; a record's other keys are listed below its texts
  ("id instruction initial_answer revised_answer task source critiques kept rejected_because tokens texts " +
   "judgement finish_reasons ended_by model adapter seed format engine roles").split(" "));

const store = { // a browser may refuse to keep anything: then the page says so, and works until it is closed
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(key, value); return true; } catch { return false; } },
  keys() { try { return Object.keys(localStorage); } catch { return []; } },
};

let data, examples, byId, hidden, rowHeight, listHeight; // heights in pixels
let visible = [];        // indices of the examples that the filters leave
let at = -1;             // place of the open example in `visible`
let marks = new Map();   // id -> {critique_meaningful, revision_better, note, time, texts}
let diffMode = "both";
const haystacks = [];    // an example's texts in lower case, made when they are first searched

// ---- small helpers ----

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.append(...seen(value));
    else node.setAttribute(name, value);
  }
  node.append(...children.flatMap((child) => typeof child === "string" ? seen(child) : [child]));
  return node;
}

// A text as a reviewer has to see it: what shows nothing or would reorder the rest (data.hidden captures it, as in
// core/text.py) becomes a token, \u202e, that holds the character itself for the clipboard.
function seen(text) {
  const parts = [];
  let from = 0;
  text = String(text);
  for (const found of text.matchAll(hidden)) {
    if (found[1] === undefined) continue;
    const token = el("span", { class: "ctrl", title: "a character that does not show" });
    token.textContent = escaped(found[1]);
    token.character = found[1];
    parts.push(text.slice(from, found.index), token);
    from = found.index + found[0].length;
  }
  return [...parts, text.slice(from)].filter(Boolean);
}
function escaped(character) {
  const code = character.codePointAt(0), hex = (digits) => code.toString(16).padStart(digits, "0");
  return character === "\r" ? "\\r" : code < 0x100 ? `\\x${hex(2)}` : code < 0x10000 ? `\\u${hex(4)}` : `\\U${hex(8)}`;
}

// What is copied has the characters in place of their tokens.
function copyTrueText(event) {
  const selection = getSelection();
  const tokens = [...document.querySelectorAll(".ctrl")].filter((token) => selection.containsNode(token, true));
  if (!tokens.length || event.target.closest?.("input")) return;
  const marks = tokens.map((token, n) => { // one that no text has stands for each: a browser drops such characters
    const shown = token.firstChild.data;
    token.firstChild.data = `\uE000${n}\uE001`;
    return () => { token.firstChild.data = shown; };
  });
  const copied = selection.toString();
  for (const back of marks) back();
  event.clipboardData.setData("text/plain", copied.replace(/\uE000(\d+)\uE001/g, (_, n) => tokens[n].character));
  event.preventDefault();
}
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const words = (name) => String(name).replaceAll("_", " ");
const count = (names) => {
  const found = new Map();
  for (const name of names) found.set(name, (found.get(name) ?? 0) + 1);
  return [...found].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
};
const anchor = (example) => (/^\w+$/.test(example.id) ? `#${example.id}` : "#");
const principles = (example) => example.critiques.map((c) => c.principle_id);

let noticeTimer;
function notice(text, stays = false) {
  clearTimeout(noticeTimer);
  $("notice").textContent = text;
  if (!stays) noticeTimer = setTimeout(() => { $("notice").textContent = ""; }, 6000);
}

// ---- the theme, before anything is painted ----

const THEMES = ["auto", "light", "dark"];
function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  if ($("theme")) $("theme").textContent = `Theme: ${theme}`;
}
let theme = THEMES.includes(store.get("cai-review-theme")) ? store.get("cai-review-theme") : "auto";
showTheme(theme);

// ---- filters and search ----

const STATUS = { kept: (e) => e.kept, rejected: (e) => !e.kept };
const MARKED = {
  unmarked: (e) => !isDone(e),
  marked: (e) => marks.has(e.id),
  "critique meaningful": (e) => marks.get(e.id)?.critique_meaningful === true,
  "critique not meaningful": (e) => marks.get(e.id)?.critique_meaningful === false,
  "revision better": (e) => marks.get(e.id)?.revision_better === "revision",
  tie: (e) => marks.get(e.id)?.revision_better === "tie",
  "first answer better": (e) => marks.get(e.id)?.revision_better === "first",
  "with a note": (e) => Boolean(marks.get(e.id)?.note),
};

function fillFilters() {
  const fill = (id, all, options) => $(id).replaceChildren(
    el("option", { value: "", text: all }),
    ...options.map(([value, n]) => el("option", { value, text: n === undefined ? words(value) : `${words(value)} (${n})` })));
  fill("status", "kept and rejected", Object.entries(STATUS).map(([s, test]) => [s, examples.filter(test).length]));
  fill("marked", "any marks", Object.keys(MARKED).map((m) => [m]));
  fill("reason", "any reason", count(examples.flatMap((e) => e.rejected_because)));
  fill("task", "any task", count(examples.map((e) => e.task)));
  fill("principle", "any principle", count(examples.flatMap(principles)));
}

function haystack(i) {
  const e = examples[i];
  return haystacks[i] ??= [e.instruction, e.initial_answer, e.revised_answer, e.task, e.source,
    ...e.rejected_because, ...e.critiques.flatMap((c) => [c.principle_id, c.principle, c.critique])].join("\n").toLowerCase();
}

function applyFilters() {
  const open = at < 0 ? -1 : visible[at];
  const [status, marked, reason, task, principle] =
    ["status", "marked", "reason", "task", "principle"].map((id) => $(id).value);
  const wanted = Array.from($("search").value.toLowerCase().matchAll(/"([^"]+)"|\S+/g), (m) => m[1] ?? m[0]);
  visible = [];
  examples.forEach((e, i) => {
    if ((!status || STATUS[status](e)) && (!marked || MARKED[marked](e)) &&
        (!reason || e.rejected_because.includes(reason)) && (!task || e.task === task) &&
        (!principle || principles(e).includes(principle)) && wanted.every((w) => w === e.id || haystack(i).includes(w))) visible.push(i);
  });
  for (const bar of document.querySelectorAll("#reasons button")) {
    bar.setAttribute("aria-pressed", String(bar.dataset.value === $(bar.dataset.filter).value));
  }
  $("clear").disabled = !(status || marked || reason || task || principle || wanted.length);
  $("rows").style.height = `${visible.length * rowHeight}px`;
  at = visible.indexOf(open);
  if (at < 0) openAt(visible.length ? 0 : -1);
  else { scrollToRow(); renderRows(); }
  showCount();
}

function showCount() {
  const { done } = tally();
  $("count").textContent = `${plural(visible.length, "example")}` +
    (visible.length < examples.length ? ` of ${examples.length.toLocaleString("en")}` : "") + ` · ${done} fully marked`;
}

// ---- the list: only the rows in sight exist ----

function renderRows() {
  const list = $("list");
  const from = Math.max(0, Math.floor(list.scrollTop / rowHeight) - 4);
  const to = Math.min(visible.length, from + Math.ceil(listHeight / rowHeight) + 9);
  const rows = [];
  for (let place = from; place < to; place++) {
    const e = examples[visible[place]], mark = marks.get(e.id);
    const labels = [mark?.critique_meaningful === true && "critique ✓", mark?.critique_meaningful === false && "critique ✗",
      mark?.revision_better && { revision: "revision ✓", first: "first ✓", tie: "tie" }[mark.revision_better]];
    const row = el("div", { role: "option", id: `row-${place}`, class: "row", "aria-selected": place === at,
      "aria-setsize": visible.length, "aria-posinset": place + 1 },
      el("span", { class: "title", dir: "auto", text: e.instruction }),
      el("span", { class: "meta" },
        el("span", { class: e.kept ? "kept" : "rejected", text: e.kept ? "kept" : e.rejected_because.map(words).join(", ") || "rejected" }),
        el("span", { class: "quiet", text: words(e.task) }),
        el("span", { class: "labels", text: labels.filter(Boolean).join(" · ") })));
    row.style.top = `${place * rowHeight}px`;
    row.addEventListener("click", () => { openAt(place); showView("example"); });
    rows.push(row);
  }
  const empty = examples.length ? "No example fits these filters."
    : "This run has no examples yet: its records.jsonl is empty or not there.";
  $("rows").replaceChildren(...(rows.length ? rows : [el("p", { class: "empty", text: empty })]));
  if (at >= from && at < to) list.setAttribute("aria-activedescendant", `row-${at}`);
  else list.removeAttribute("aria-activedescendant");
}

function scrollToRow() {
  const list = $("list"), top = at * rowHeight;
  if (at < 0) return;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + rowHeight > list.scrollTop + listHeight) list.scrollTop = top + rowHeight - listHeight;
}

let addressTimer;
function openAt(place) {
  at = place;
  scrollToRow();
  renderRows();
  renderExample();
  showMarks();
  $("example").scrollTop = 0;
  clearTimeout(addressTimer); // browsers refuse an address that changes as fast as a key that is held down
  addressTimer = setTimeout(() => { if (at >= 0) history.replaceState(null, "", anchor(examples[visible[at]])); }, 300);
}

const step = (by) => { if (visible.length) openAt(Math.min(visible.length - 1, Math.max(0, at + by))); };

function nextUnmarked() {
  const next = visible.findIndex((i, place) => place > at && !isDone(examples[i]));
  if (next >= 0) openAt(next);
  else notice("No example after this one is left unmarked in the list.");
}

function showView(view) { document.body.dataset.view = view; if (view === "list") { scrollToRow(); renderRows(); } }

// ---- one example ----

function renderExample() {
  const box = $("example");
  if (at < 0) {
    box.replaceChildren();
    return;
  }
  const e = examples[visible[at]];
  const parts = e.revised_answer && diffMode !== "off" ? compare(e.initial_answer, e.revised_answer) : null;
  const chips = e.kept ? [el("span", { class: "chip good", text: "kept" })]
    : [el("span", { class: "chip bad", text: "rejected" }), ...e.rejected_because.map((r) => el("span", { class: "chip", text: words(r) }))];
  const ends = (e.finish_reasons ?? []).some((r) => r !== "stop") ? [["ended by", e.finish_reasons.join(", ")]] : [];
  const facts = [["task", words(e.task)], ["source", words(e.source)],
    ["tokens", Object.entries(e.tokens).map(([k, n]) => `${k} ${Number(n).toLocaleString("en")}`).join(", ")], ...ends, ...helpers(e), ["id", e.id]];
  box.replaceChildren(
    el("h2", { dir: "auto", text: e.instruction }),
    el("p", { class: "chips" }, ...chips),
    el("dl", { class: "facts" }, ...facts.map(([k, v]) => el("div", {}, el("dt", { text: k }), el("dd", { text: v })))),
    el("div", { class: "texts" },
      section("first", "First answer", prose(e.initial_answer, parts && diffMode === "both" ? parts.map(({ same, del }) => [same?.[0] ?? "", del, ""]) : null)),
      el("div", { class: "critiques" }, ...e.critiques.map((c) => section("critique", `Critique by ${words(c.principle_id)}`,
        el("p", { class: "principle", dir: "auto", text: c.principle }), prose(c.critique)))),
      revision(e, parts)),
    ...(e.judgement ? [section("judgement", "Judgement", tree(e.judgement))] : []),
    ...Object.entries(e).filter(([k]) => !OWN.has(k)).map(([k, v]) => section("more", words(k), tree(v))));
}

// Which adapter wrote or read what, where one did: the base model needs no word.
const helpers = (e) => Object.entries(e.roles ?? {}).filter(([, adapter]) => adapter)
  .map(([role, adapter]) => [role, String(adapter).slice(0, 8)]);

function revision(e, parts) {
  if (!e.revised_answer) return section("revision", "Revision", el("p", { class: "quiet", text: "None: the answer was not revised." }));
  const button = el("button", { type: "button", class: "small" }, `Differences ${DIFF_NAMES[diffMode]} `, el("kbd", { text: "d" }));
  button.addEventListener("click", () => act("d"));
  const long = parts?.tooLong ? [el("p", { class: "quiet", text: "Too long to be compared word by word: all of it is marked." })] : [];
  return section("revision", "Revision", ...long, prose(e.revised_answer,
    parts && parts.map(({ same, del, ins }) => [same?.[1] ?? "", diffMode === "inline" ? del : "", ins])), button);
}

const section = (name, title, ...children) => el("section", { class: name }, el("h3", { text: title }), ...children);

function prose(text, parts = null) { // parts: [unchanged, deleted, inserted] texts, in order
  const box = el("div", { class: "prose", dir: "auto" });
  if (!text) box.append(el("span", { class: "quiet", text: "(empty)" }));
  else if (!parts) box.append(...seen(text));
  else for (const [same, del, ins] of parts) {
    for (const [tag, part] of [["span", same], ["del", del], ["ins", ins]]) {
      const word = part.trimEnd(); // the space after a change is not part of it
      if (word) box.append(...(tag === "span" ? seen(word) : [el(tag, { text: word })]));
      box.append(...seen(part.slice(word.length)));
    }
  }
  return box;
}

// Any JSON value: tables of names and values. What a judge said in its two orders becomes a sentence; sides: what it
// was shown as its second and as its first response.
function tree(value, sides = ["the revision", "the first answer"]) {
  if (value === null || typeof value !== "object") {
    const text = value === null ? "none" : typeof value === "boolean" ? (value ? "yes" : "no")
      : typeof value === "number" && !Number.isInteger(value) ? value.toFixed(3) : String(value);
    return el("span", { dir: "auto", text });
  }
  if (Array.isArray(value)) return el("ol", {}, ...value.map((v) => el("li", {}, tree(v, sides))));
  const row = ([k, v]) => el("tr", {}, el("th", { scope: "row", text: words(k) }),
    el("td", {}, tree(v, k === "against_refusal" ? ["the answer", "a plain refusal"] : sides)));
  const rows = (entries) => el("table", { class: "tree" }, el("tbody", {}, ...entries.map(row)));
  if (!("forward" in value && "backward" in value)) return rows(Object.entries(value));
  const { forward, backward, winner, tokens, prompt_tokens, ...rest } = value;
  const outcome = { second: `${sides[0]} wins`, first: `${sides[1]} wins`, tie: "a tie" }[winner] ?? "two orders";
  return el("div", {}, el("p", { class: "orders" }, el("b", { text: outcome }), `; probability that ${sides[0]} is better: `,
    tree(forward), " where it is shown second, ", tree(backward), " where it is shown first"), rows(Object.entries(rest)));
}

// ---- header and dialogs ----

function showDialog(id) {
  $(id).showModal();
  $(id).querySelector("h2").focus(); // at its top, not at the button at its end
}

function renderHeader() {
  const { facts } = data, kept = examples.filter((e) => e.kept).length;
  $("run").textContent = data.run;
  const line = [["model", facts.model], ["adapter", facts.adapter?.slice(0, 8)], ["seed", facts.seed], ["kept", `${kept.toLocaleString("en")} of ${examples.length.toLocaleString("en")}`]];
  $("facts").replaceChildren(...line.filter(([, v]) => v !== undefined && v !== null)
    .map(([k, v]) => el("div", {}, el("dt", { text: k }), el("dd", { text: v }))));
  const decision = facts.gate?.decision;
  $("gate").textContent = `Gate: ${decision ?? "none yet"}`;
  $("gate").classList.add(decision === "GO" ? "good" : decision === "NO-GO" ? "bad" : "open");
  const bars = [["status", "kept", kept], ...count(examples.flatMap((e) => e.rejected_because)).map(([r, n]) => ["reason", r, n])];
  $("reasons").replaceChildren(...bars.map(([filter, value, n]) => {
    const fill = el("span", { class: "fill" });
    fill.style.width = `${examples.length ? (100 * n) / examples.length : 0}%`;
    const bar = el("button", { type: "button", class: filter, "data-filter": filter, "data-value": value },
      el("span", { text: words(value) }), el("b", { text: n.toLocaleString("en") }), el("span", { class: "track" }, fill));
    bar.addEventListener("click", () => { $(filter).value = $(filter).value === value ? "" : value; applyFilters(); });
    return bar;
  }));
}

function about() {
  const { gate, ...facts } = data.facts, t = tally();
  const share = (n, of) => of ? `${n} of ${of} (${Math.round((100 * n) / of)} %)` : "none yet";
  const criteria = (gate?.criteria ?? []).map((c) => el("tr", {},
    el("td", {}, c.passed === null ? el("span", { class: "chip open", text: "too few" })
      : el("span", { class: c.passed ? "chip good" : "chip bad", text: c.passed ? "pass" : "FAIL" })),
    el("th", { scope: "row", text: c.name }),
    el("td", { text: c.measured + (c.interval ? `, 95 % interval ${c.interval.map((v) => v.toFixed(2)).join(" to ")}` : "")
      + (c.more ? `; to tell: ${c.more}` : "") })));
  $("about-text").replaceChildren(
    el("h3", { text: `Gate: ${gate?.decision ?? "none yet"}` }), el("table", {}, el("tbody", {}, ...criteria)),
    el("h3", { text: "Your marks" }), tree({
      "fully marked": share(t.done, examples.length), "critique meaningful": share(t.yes, t.yes + t.no),
      "revision better": share(t.revision, t.revision + t.tie + t.first), tie: t.tie, "first answer better": t.first }),
    el("h3", { text: "Facts" }), tree(facts));
  showDialog("about");
}

// ---- keys ----

function act(key) { // whether the key means something here
  if (key in ANSWERS) {
    const [question, answer] = ANSWERS[key];
    if (at >= 0 && (question !== "revision_better" || examples[visible[at]].revised_answer)) change({ [question]: answer });
  } else if (key === "x") change({ critique_meaningful: null, revision_better: null, note: "" });
  else if (key === "j") step(1);
  else if (key === "k") step(-1);
  else if (key === "u") nextUnmarked();
  else if (key === "d") { diffMode = DIFFS[(DIFFS.indexOf(diffMode) + 1) % 3]; renderExample(); }
  else if (key === "c") { showView("example"); $("note").focus(); }
  else if (key === "/") { showView("list"); $("search").focus(); $("search").select(); }
  else if (key === "e") exportMarks();
  else if (key === "i") about();
  else if (key === "?") showDialog("keys");
  else return false;
  return true;
}

function onKey(event) {
  const target = event.target, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  if (target.matches("input, select")) {
    if (key === "Escape" || (key === "Enter" && target.matches("input"))) { event.preventDefault(); target.id === "note" ? $("example").focus() : $("list").focus(); }
    return;
  }
  const reading = $("example").contains(target), browsing = target === $("list");
  const moves = { ArrowRight: 1, ArrowLeft: -1, ...(reading ? {} : { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }) };
  if (key in moves) step(moves[key]);
  else if (key === " " && !target.matches("button")) $("example").scrollBy({ top: $("example").clientHeight * (event.shiftKey ? -0.85 : 0.85) });
  else if (key === "Enter" && browsing) { showView("example"); $("example").focus(); }
  else if (key === "Escape") { showView("list"); $("list").focus(); }
  else if (event.repeat && (key in ANSWERS || "xecid?/".includes(key))) return; // held down, only j, k and u go on
  else if (!act(key)) return;
  event.preventDefault();
}

// ---- start ----

document.addEventListener("DOMContentLoaded", () => {
  data = JSON.parse($("data").textContent);
  $("data").textContent = ""; // parsed: the text need not be held twice
  examples = data.examples;
  hidden = new RegExp(data.hidden, "gu");
  byId = new Map(examples.map((e) => [e.id, e]));
  const root = getComputedStyle(document.documentElement);
  rowHeight = parseFloat(root.getPropertyValue("--row")) * parseFloat(root.fontSize);
  showTheme(theme);
  loadMarks();
  renderHeader();
  fillFilters();

  let wait;
  $("search").addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(applyFilters, 120); });
  $("filters").addEventListener("change", applyFilters);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(applyFilters));
  $("list").addEventListener("scroll", renderRows);
  listHeight = $("list").clientHeight;
  new ResizeObserver(() => { listHeight = $("list").clientHeight; renderRows(); }).observe($("list"));
  for (const button of document.querySelectorAll("#marks [data-key]")) button.addEventListener("click", () => act(button.dataset.key));
  $("note").addEventListener("input", () => change({ note: $("note").value }));
  $("back").addEventListener("click", () => { showView("list"); $("list").focus(); });
  $("export").addEventListener("click", exportMarks);
  $("import").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async () => { importMarks(await $("file").files[0].text()); $("file").value = ""; });
  $("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % 3];
    store.set("cai-review-theme", theme);
    showTheme(theme);
  });
  $("help").addEventListener("click", () => act("?"));
  $("gate").addEventListener("click", about);
  $("notice").addEventListener("click", () => notice(""));
  document.addEventListener("keydown", onKey);
  document.addEventListener("copy", copyTrueText);
  window.addEventListener("storage", (event) => { // the same page in another tab
    if (event.key === markKey(data.hash)) { marks = parseMarks(event.newValue); showMarks(); renderRows(); }
  });

  const wanted = location.hash ? examples.findIndex((e) => anchor(e) === location.hash) : -1;
  applyFilters();
  if (wanted >= 0) { openAt(wanted); showView("example"); }
  document.body.dataset.ready = "";
  $("list").focus({ preventScroll: true });
});
