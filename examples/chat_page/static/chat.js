// The page of both applications. What the server says is only ever set as text, never as HTML.
"use strict";

const MOST_ROWS = 50;
const STOPPED = "Stopped. The server may still finish it: load the page to see.";
const UNANSWERED = "No answer is kept: it was stopped, has failed, or is not finished.";

const $ = (id) => document.getElementById(id);
let controller = null; // of the answer that streams

const state = (name) => { document.body.dataset.state = name; };
const notice = (text) => { $("notice").textContent = text; };

function add(parent, tag, text = "", kind = "") {
  const child = document.createElement(tag);
  child.textContent = text;
  child.className = kind;
  parent.append(child);
  return child;
}

function addQuestion(text) {
  add($("log"), "p", text, "question");
}

function addAnswer() {
  const answer = add($("log"), "div", "", "answer");
  return { box: add(answer, "div"), text: null, progress: add(answer, "div", "", "progress") };
}

function addText(answer, text) {
  // A table between two pieces of text stays between them.
  answer.text ??= add(answer.box, "div", "", "text");
  answer.text.append(text);
  follow();
}

// Of Markdown only what answers are full of, as elements whose text is set.
function endText(answer) {
  if (!answer.text) return;
  const parts = answer.text.textContent.split(/\*\*(.+?)\*\*/);
  answer.text.replaceChildren();
  parts.forEach((part, number) => add(answer.text, number % 2 ? "strong" : "span", part));
  answer.text = null;
}

function addResult(answer, { summary, row_count: count, columns, rows: all }) {
  endText(answer);
  if (!all.length) {
    add(answer.box, "div", summary, "progress");
    follow();
    return;
  }
  const rows = all.slice(0, MOST_ROWS);
  const table = add(add(answer.box, "div", "", "table"), "table");
  const rest = count > rows.length ? `, of which these are the first ${rows.length}` : "";
  add(table, "caption", `${count} ${count === 1 ? "row" : "rows"}${rest}`);
  const head = table.createTHead().insertRow();
  for (const name of columns) add(head, "th", name);
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const name of columns) add(line, "td", cell(row[name]));
  }
  follow();
}

function cell(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function follow() {
  $("log").scrollTop = $("log").scrollHeight;
}

function post(path, body, signal) {
  // Django's middleware wants its cookie's token back; Flask's application the JSON alone.
  const token = /(?:^|; )csrftoken=([^;]*)/.exec(document.cookie);
  const headers = { "Content-Type": "application/json" };
  if (token) headers["X-CSRFToken"] = token[1];
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

// Tell what a refusal says in its one line; 401 is answered by signing in.
async function refused(response) {
  let message = `The application failed (${response.status}).`;
  try {
    message = (await response.json()).error;
  } catch { /* what a proxy answers is no JSON */ }
  notice(message);
  state(response.status === 401 ? "signed-out" : "ready");
}

// Yield the events of a response. EventSource cannot POST, and asks again by itself.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const found = /^event: (\w+)\ndata: (.*)$/.exec(block); // else a heartbeat
      if (found) yield [found[1], JSON.parse(found[2], exact)];
    }
  }
}

// A bigint may have more digits than a number of JavaScript: then they are kept as text.
function exact(name, value, context) {
  const whole = !Number.isInteger(value) || Number.isSafeInteger(value);
  return whole ? value : context?.source ?? value; // browsers before 2025 give no source
}

async function ask(question) {
  const mine = controller = new AbortController();
  let answer = null;
  notice("");
  state("streaming");
  try {
    const response = await post("/ask", { question }, mine.signal);
    if (!response.ok) return await refused(response);
    $("question").value = "";
    addQuestion(question);
    answer = addAnswer();
    follow();
    let ended = false;
    for await (const [kind, data] of events(response)) {
      if (kind === "progress") answer.progress.textContent = data.message;
      if (kind === "content") addText(answer, data.delta);
      if (kind === "result") addResult(answer, data);
      if (kind === "error") notice(data.message);
      ended ||= kind === "done" || kind === "error";
    }
    if (!ended) notice("The answer broke off.");
    endText(answer);
    answer.progress.textContent = "";
    state("ready");
  } catch (error) {
    if (answer) answer.progress.textContent = mine.signal.aborted ? STOPPED : "";
    if (!mine.signal.aborted) notice("The application cannot be reached.");
    state("ready");
  } finally {
    controller = null;
  }
}

async function load() {
  try {
    const response = await fetch("/history");
    if (!response.ok) return await refused(response);
    const { user, messages, conversations } = await response.json();
    $("who").textContent = user;
    const heading = new Option("Conversations", "", true, true);
    heading.disabled = true;
    $("past").replaceChildren(heading);
    for (const { handle, title, current } of conversations) {
      $("past").append(new Option(title, handle, current, current));
    }
    $("log").replaceChildren();
    messages.forEach((message, number) => {
      if (message.role === "user") {
        addQuestion(message.content);
        const answered = messages[number + 1]?.role === "assistant";
        if (!answered) addAnswer().progress.textContent = UNANSWERED;
        return;
      }
      const answer = addAnswer();
      for (const result of message.results) addResult(answer, result);
      addText(answer, message.content);
      endText(answer);
    });
    state("ready");
    $("question").focus();
  } catch {
    notice("The application cannot be reached.");
    state("ready");
  }
}

async function act(path, body, then) {
  notice("");
  try {
    const response = await post(path, body);
    if (!response.ok) {
      const before = document.body.dataset.state;
      await refused(response);
      if (before === "signed-out") state(before);
      return;
    }
    await then();
  } catch {
    notice("The application cannot be reached.");
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!controller) ask($("question").value);
});
// Closing the stream is the stop: the worker that holds the answer sees its connection end, and
// cancels. Another request would have to find that worker, and one that is free.
$("stop").addEventListener("click", () => controller?.abort());
$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const body = { email: $("email").value, password: $("password").value };
  $("password").value = "";
  act("/sign-in", body, load);
});
$("new").addEventListener("click", () => {
  controller?.abort();
  act("/new", {}, load);
});
// The page knows conversations by handles that are of use to its own session alone.
$("past").addEventListener("change", (event) => {
  controller?.abort();
  act("/open", { conversation: event.target.value }, load);
});
$("sign-out").addEventListener("click", () => {
  controller?.abort();
  act("/sign-out", {}, () => location.reload()); // nothing of it stays in the page
});
load();
