"use strict";

// The page keeps nothing: what is typed goes to /inspect, what comes back is shown. Texts are only ever put in as text.

const LETTERS = "ABCDEFGH";
const byId = (name) => document.getElementById(name);
const answers = byId("answers");
const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(3);

function element(name, { text = "", className = "" } = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

// Answers

function addAnswer() {
  answers.append(byId("answer").content.cloneNode(true));
  const card = answers.lastElementChild;
  card.querySelector(".remove").addEventListener("click", () => {
    const next = card.nextElementSibling ?? card.previousElementSibling;
    card.remove();
    nameAnswers();
    forget();
    next.querySelector("textarea").focus();
  });
  card.querySelector("textarea").addEventListener("input", forget);
  letWordsBeRead(card);
  nameAnswers();
  return card;
}

function nameAnswers() {
  const cards = [...answers.children];
  cards.forEach((card, place) => {
    const name = `Answer ${LETTERS[place]}`;
    card.querySelector(".name").textContent = name;
    card.querySelector("textarea").setAttribute("aria-label", name);
    card.querySelector(".remove").setAttribute("aria-label", `Remove answer ${LETTERS[place]}`);
    card.querySelector(".remove").hidden = cards.length === 1;
    card.querySelector(".heat").setAttribute("aria-label", `${name}, word by word; arrow keys read the numbers`);
  });
  byId("add").disabled = cards.length === LETTERS.length;
}

// What was shown belongs to what was typed; once that changes it goes, and what was asked about it is not shown when it comes.
let changes = 0;
function forget() {
  changes += 1;
  for (const result of answers.querySelectorAll(".result")) result.hidden = true;
  for (const card of answers.children) card.classList.remove("best");
  byId("voices").hidden = true;
  byId("changes").hidden = true;
  byId("legend").hidden = true;
  tell("");
}

function tell(text, failed = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("failed", failed);
}

// Asking

async function ask(path, body) {
  const token = byId("token").value;
  const headers = { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(path, body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) });
  const found = await answer.json();
  if (answer.ok) return found;
  if (answer.status === 401) {
    byId("token-field").hidden = false;
    byId("token").focus();
  }
  throw new Error(found.error.message);
}

async function askOf(path, doing, show) {
  const cards = [...answers.children];
  const asked = changes;
  const buttons = [byId("score"), byId("perturb")];
  for (const button of buttons) button.disabled = true;
  tell(`${doing} \u2026`);
  try {
    const texts = cards.map((card) => card.querySelector("textarea").value);
    const found = await ask(path, { model: byId("model").value, prompt: byId("prompt").value, answers: texts });
    if (changes !== asked) {
      tell("Something was changed meanwhile; ask again.");
      return;
    }
    tell("");
    show(found, cards);
  } catch (error) {
    tell(error instanceof TypeError ? "The server cannot be reached." : error.message, true);
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

function score() {
  forget();
  return askOf("/inspect", "Scoring", (found, cards) => {
    tell(found.without_pieces);
    for (const show of panels) show(found, cards);
  });
}

// Showing: each panel takes what the server found and the answers' cards.

const panels = [showRewards, showWords, showVoices];

function showRewards(found, cards) {
  const best = Math.max(...found.answers.map((one) => one.reward));
  found.answers.forEach((one, place) => {
    const card = cards[place];
    const isBest = one.reward === best && cards.length > 1;
    card.querySelector("output").textContent = signed(one.reward);
    card.querySelector(".rank").textContent = isBest ? "the best" : cards.length > 1 ? `${signed(one.reward - best)} to the best` : "";
    card.classList.toggle("best", isBest);
    card.querySelector(".result").hidden = false;
  });
}

function showWords(found, cards) {
  byId("legend").hidden = Boolean(found.without_pieces);
  found.answers.forEach((one, place) => {
    const heat = cards[place].querySelector(".heat");
    heat.replaceChildren(...one.pieces.map(wordOf));
    heat.hidden = !one.pieces.length;
    cards[place].querySelector(".reading").textContent = one.before === null ? "" : `${signed(one.before)} before the answer`;
  });
}

function wordOf(piece) {
  const kind = piece.shade > 0 ? "up" : piece.shade < 0 ? "down" : "";
  const word = element("span", { text: piece.text || "end", className: piece.text ? kind : `${kind} end` });
  word.style.setProperty("--strength", (0.75 * Math.abs(piece.shade)).toFixed(3));
  word.dataset.reading = `${JSON.stringify(piece.text || "end")} ${signed(piece.gain)}, then ${signed(piece.reached)}`;
  return word;
}

function letWordsBeRead(card) {
  const heat = card.querySelector(".heat");
  const choose = (word) => {
    heat.querySelector(".chosen")?.classList.remove("chosen");
    word.classList.add("chosen");
    card.querySelector(".reading").textContent = word.dataset.reading;
  };
  for (const kind of ["pointerover", "click"]) {
    heat.addEventListener(kind, (event) => {
      if (event.target.dataset.reading) choose(event.target);
    });
  }
  heat.addEventListener("keydown", (event) => {
    const chosen = heat.querySelector(".chosen");
    const next = {
      ArrowRight: chosen ? chosen.nextElementSibling : heat.firstElementChild,
      ArrowLeft: chosen?.previousElementSibling,
      Home: heat.firstElementChild,
      End: heat.lastElementChild,
    }[event.key];
    if (!next) return;
    event.preventDefault();
    choose(next);
  });
}

function showVoices(found) {
  byId("voices").hidden = !found.voices;
  if (!found.voices) return;
  const { kind, names, rewards, heard } = found.voices;
  byId("voices-caption").textContent = `${kind}. Each one's favourite is marked; the last column is how far apart its answers are.`;
  const head = element("tr");
  const columns = ["", ...found.answers.map((_, place) => LETTERS[place]), "spread"];
  head.append(...columns.map((text) => element("th", { text })));
  byId("voices").querySelector("thead").replaceChildren(head);
  byId("voices").querySelector("tbody").replaceChildren(...names.map((name, row) => voiceOf(name, rewards[row], heard[row])));
}

function voiceOf(name, rewards, heard) {
  const row = element("tr", { className: heard ? "" : "unheard" });
  const best = Math.max(...rewards);
  const first = element("th", { text: heard ? name : `${name} (not asked)` });
  first.scope = "row";
  const cells = rewards.map((value) => element("td", { text: signed(value), className: value === best && rewards.length > 1 ? "favourite" : "" }));
  row.append(first, ...cells, element("td", { text: (best - Math.min(...rewards)).toFixed(3) }));
  return row;
}

function showChanges(found) {
  const largest = (change) => Math.max(...change.answers.map((one) => (one === null ? -Infinity : one.shift)));
  const changes = [...found.changes].sort((one, other) => largest(other) - largest(one));
  const head = element("tr");
  head.append(...["", ...[...answers.children].map((_, place) => LETTERS[place]), "the answer"].map((text) => element("th", { text })));
  byId("changes").querySelector("thead").replaceChildren(head);
  byId("changes").querySelector("tbody").replaceChildren(...changes.map(changeOf));
  byId("changes").hidden = false;
  if (!changes.length) tell("None of the changes applies to these answers.");
}

function changeOf(change) {
  const row = element("tr");
  const first = element("th", { text: change.way });
  first.scope = "row";
  const meaning = element("td", { text: change.effect === "kept" ? "says the same" : "is ruined" });
  row.append(first, ...change.answers.map((one, place) => shiftOf(change, one, place)), meaning);
  return row;
}

function shiftOf(change, one, place) {
  const cell = element("td", { text: one === null ? "\u2013" : "" });
  if (one === null) return cell;
  const button = element("button", { text: signed(one.shift), className: one.shift > 0 ? "paid" : "" });
  button.type = "button";
  button.title = one.text;
  button.setAttribute("aria-label", `${signed(one.shift)} for answer ${LETTERS[place]}, ${change.way}; have it beside the others`);
  button.addEventListener("click", () => {
    if (answers.children.length === LETTERS.length) {
      tell("There is no room for another answer; remove one.", true);
      return;
    }
    forget();
    const area = addAnswer().querySelector("textarea");
    area.value = one.text;
    area.focus();
  });
  cell.append(button);
  return cell;
}

// Beginning

async function begin() {
  addAnswer();
  addAnswer();
  const { models } = await ask("/health");
  byId("model").append(...models.map((name) => element("option", { text: name })));
  byId("model-field").hidden = models.length === 1;
  byId("prompt").focus();
}

byId("add").addEventListener("click", () => {
  forget();
  addAnswer().querySelector("textarea").focus();
});
byId("perturb").addEventListener("click", () => askOf("/perturb", "Changing the answers", showChanges));
byId("prompt").addEventListener("input", forget);
byId("model").addEventListener("change", forget);
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  score();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !byId("score").disabled) score();
});
begin().catch((error) => tell(error.message, true));
