// What a person says of the examples: kept by the browser, exported as review.jsonl, imported again.

const markKey = (hash) => `cai-review\n${data.run}\n${hash}`;
const parseMarks = (text) => new Map(Object.entries(JSON.parse(text ?? "{}")));
const isDone = (example) => {
  const mark = marks.get(example.id);
  return Boolean(mark) && mark.critique_meaningful !== null && (mark.revision_better !== null || !example.revised_answer);
};

function loadMarks() {
  const saved = store.get(markKey(data.hash));
  if (saved !== null) { marks = parseMarks(saved); return; }
  // A page of the same run that was written earlier: what was marked there on the very same texts holds here too.
  for (const key of store.keys()) {
    if (key.startsWith(markKey(""))) for (const [id, mark] of parseMarks(store.get(key))) adopt(id, mark);
  }
  if (marks.size) notice(`${plural(marks.size, "mark")} brought over from an earlier page of this run.`);
  saveMarks();
}

function adopt(id, mark) { // "taken", or why not
  const example = byId.get(id);
  if (!example) return "unknown";
  if (mark.texts !== undefined && mark.texts !== example.texts) return "changed";
  if (mark.revision_better !== null && !example.revised_answer) return "changed";
  const old = marks.get(id);
  if (old && Date.parse(old.time) >= Date.parse(mark.time)) return "older";
  const { critique_meaningful, revision_better, note, time } = mark;
  marks.set(id, { critique_meaningful, revision_better, note, time, texts: example.texts });
  return "taken";
}

function saveMarks() {
  if (!store.set(markKey(data.hash), JSON.stringify(Object.fromEntries(marks)))) {
    notice("This browser does not keep the marks: export them before you close the page.", true);
  }
}

function change(set) {
  if (at < 0) return;
  const example = examples[visible[at]];
  const old = marks.get(example.id) ?? { critique_meaningful: null, revision_better: null, note: "" };
  const mark = { ...old, ...set, time: new Date().toISOString(), texts: example.texts };
  if (mark.critique_meaningful === null && mark.revision_better === null && !mark.note) marks.delete(example.id);
  else marks.set(example.id, mark);
  saveMarks();
  showMarks();
  renderRows();
}

function showMarks() {
  const example = at < 0 ? null : examples[visible[at]];
  const mark = (example && marks.get(example.id)) ?? {};
  for (const button of document.querySelectorAll("#marks [data-key]")) {
    const [question, answer] = ANSWERS[button.dataset.key] ?? [];
    if (question) button.setAttribute("aria-pressed", String(mark[question] === answer));
    button.disabled = !example || (question === "revision_better" && !example.revised_answer);
  }
  $("note").disabled = !example;
  if ($("note").value !== (mark.note ?? "")) $("note").value = mark.note ?? "";
  showCount();
}

function tally() {
  const all = [...marks.values()];
  const of = (question, answer) => all.filter((m) => m[question] === answer).length;
  return {
    done: examples.filter(isDone).length,
    yes: of("critique_meaningful", true), no: of("critique_meaningful", false),
    revision: of("revision_better", "revision"), tie: of("revision_better", "tie"), first: of("revision_better", "first"),
  };
}

function exportMarks() {
  const rows = examples.filter((e) => marks.has(e.id)).map((e) => JSON.stringify({ id: e.id, ...marks.get(e.id) }) + "\n");
  if (!rows.length) return notice("There are no marks to export yet.");
  const url = URL.createObjectURL(new Blob(rows, { type: "application/x-ndjson" }));
  el("a", { href: url, download: "review.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  notice(`${plural(rows.length, "mark")} exported. Move review.jsonl into the directory of run ${data.run}.`);
}

function importMarks(text) {
  const found = { taken: 0, older: 0, unknown: 0, changed: 0 };
  let wrong = 0;
  for (const [number, line] of text.replace(/^\uFEFF/, "").split("\n").entries()) {
    if (!line.trim()) continue;
    let row = null;
    try { row = JSON.parse(line); } catch { /* reported below, with the line's number */ }
    const fits = typeof row?.id === "string" && [true, false, null].includes(row.critique_meaningful) &&
      ["revision", "first", "tie", null].includes(row.revision_better) && typeof row.note === "string" &&
      !Number.isNaN(Date.parse(row.time));
    if (!fits) { wrong = number + 1; break; }
    found[adopt(row.id, row)] += 1;
  }
  saveMarks();
  showMarks();
  renderRows();
  if (wrong) return notice(`Line ${wrong} is not a mark. What stood before it was imported.`, true);
  const left = [["older", "not later than here"], ["unknown", "of examples not on this page"], ["changed", "of other texts"]]
    .filter(([why]) => found[why]).map(([why, reason]) => `; ${found[why]} left out: ${reason}`);
  notice(`${plural(found.taken, "mark")} imported${left.join("")}.`, left.length > 0);
}
