// The page of pipeline.serve: gives pictures and what is asked to the server, and shows what comes back as text.
"use strict";
const find = id => document.getElementById(id);
const bounds = find("page").dataset;
const COLOURS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];  // inferno
// `given` is another object after each change of what is shown. Pictures have a file, a name and an address.
let pictures = [], given = null, turns = [];

async function ask(path, asked, ...files) {
  const body = new Blob([JSON.stringify(asked), "\n", ...files]);
  let answer;
  try {
    answer = await fetch(path, {method: "POST", body, headers: {"Content-Type": "application/octet-stream"}});
  } catch {
    throw new Error("The server does not answer. Is the command still running?");
  }
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `The server answered ${answer.status}.`);
  return answer;
}

// Runs a section's form. What comes back for earlier pictures is not shown.
function onSubmit(id, work) {
  const form = find(id);
  if (!form) return;
  const button = form.querySelector("button:not([type])"), fault = form.querySelector(".fault");
  form.addEventListener("submit", async event => {
    event.preventDefault();
    fault.textContent = "";
    button.disabled = true;
    form.setAttribute("aria-busy", "true");
    const before = given;
    try {
      if (!before && id !== "fetch") throw new Error("Give a picture first.");
      const show = await work(before?.picture.file);
      if (before === given) show();
    } catch (error) {
      if (before === given) fault.textContent = error.message;
    } finally {
      button.disabled = false;
      form.removeAttribute("aria-busy");
    }
  });
}

const keepsSeveral = () => Boolean(find("several")?.checked);

function refusal(file, name) {
  const kept = keepsSeveral() ? pictures : [], bytes = kept.reduce((sum, each) => sum + each.file.size, file.size);
  if (file.size > bounds.bytes) return `${name}: is larger than ${bounds.bytes / 1e6} MB.`;
  if (kept.length >= bounds.pictures) return `${name}: these are ${bounds.pictures} pictures already; remove one first.`;
  return bytes > bounds.bytes ? `${name}: all pictures together are larger than ${bounds.bytes / 1e6} MB; remove one first.` : "";
}

function take(file, name) {
  const fault = find("fetch").querySelector(".fault");
  fault.textContent = refusal(file, name);
  if (fault.textContent) return false;
  const taken = {file, name, address: URL.createObjectURL(file)};
  keep(keepsSeveral() ? [...pictures, taken] : [taken], taken);
  return true;
}

// Several files at once are kept together, where the page can do that.
function takeAll(files) {
  if (files.length > 1 && find("several")) find("several").checked = true;
  for (const file of keepsSeveral() ? files : files.slice(0, 1)) if (!take(file, file.name || "pasted picture")) break;
}

// These are the pictures now, and this one is shown: what was said of others goes.
function keep(those, shown) {
  for (const each of pictures) if (!those.includes(each)) URL.revokeObjectURL(each.address);
  pictures = those;
  given = shown ? {picture: shown} : null;
  if (shown) find("picture").src = shown.address;
  find("name").textContent = shown?.name ?? "";
  find("given").hidden = !shown;
  find("thumbnails").hidden = !keepsSeveral();
  find("thumbnails").replaceChildren(...pictures.map(thumbnail));
  if (find("marks")) find("marks").hidden = !keepsSeveral();
  for (const old of document.querySelectorAll("output, .fault")) old.textContent = "";
  for (const old of document.querySelectorAll(".scores, #maps")) old.hidden = true;
  startOver();
}

function thumbnail(picture, place) {
  const item = document.createElement("li"), others = pictures.filter(each => each !== picture);
  const show = element("button", "", {type: "button", "aria-pressed": String(picture === given.picture), title: picture.name});
  const remove = element("button", "Remove", {type: "button", "aria-label": `Remove picture ${place + 1}`});
  show.append(element("img", "", {src: picture.address, alt: ""}), element("span", `Picture ${place + 1}`));
  show.addEventListener("click", () => keep(pictures, picture));
  remove.addEventListener("click", () => keep(others, picture === given.picture ? others.at(-1) : given.picture));
  item.append(show, remove);
  return item;
}

function startOver() {
  turns = [];
  find("turns")?.replaceChildren();
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

find("picture").addEventListener("error", () => {
  find("name").textContent += " (this browser does not show the format; the model may read it)";
});
find("file").addEventListener("change", event => {
  takeAll([...event.target.files]);
});
for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, event => {
  event.preventDefault();
  document.body.classList.toggle("over", kind === "dragover");
});
addEventListener("drop", event => {
  const {files} = event.dataTransfer, url = event.dataTransfer.getData("text/uri-list").split("\n")[0].trim();
  if (files.length) takeAll([...files]);
  else if (url) fetchUrl(url);
});
addEventListener("paste", event => {
  takeAll([...event.clipboardData.files]);
});
find("several")?.addEventListener("change", () => {
  keep(keepsSeveral() ? pictures : pictures.filter(each => each === given.picture), given?.picture);
});
find("mark")?.addEventListener("click", () => {
  const prompt = find("prompt");
  prompt.setRangeText("<image> ", prompt.selectionStart, prompt.selectionEnd, "end");
  prompt.focus();
});

function fetchUrl(url) {
  find("url").value = url;
  find("fetch").requestSubmit();
}

onSubmit("fetch", async () => {
  const url = find("url").value.trim(), content = await (await ask("/picture", {url})).blob();
  return () => take(content, url);
});

onSubmit("caption", async () => {
  const prompt = find("prompt").value.trim(), asked = prompt ? {prompt} : {}, files = pictures.map(each => each.file);
  if (files.length > 1) asked.sizes = files.map(each => each.size);
  const {text} = await (await ask("/caption", asked, ...files)).json();
  return () => { find("caption").querySelector("output").textContent = text || "(no text)"; };
});

// The last turns that the server takes beside the question.
function earlier(question) {
  let kept = turns.slice(-bounds.turns);
  const length = () => kept.flat().reduce((sum, text) => sum + text.length, question.length);
  while (kept.length && length() > bounds.conversation) kept = kept.slice(1);
  return kept;
}

onSubmit("answer", async file => {
  const question = find("question").value.trim(), before = turns;
  const {text} = await (await ask("/answer", {question, earlier: earlier(question)}, file)).json();
  return () => {
    if (before !== turns) return;  // a new conversation has begun
    turns.push([question, text]);
    find("turns").append(element("dt", question), element("dd", text || "(no text)"));
    find("turns").scrollTop = find("turns").scrollHeight;
    find("question").value = "";
    find("question").focus();
  };
});
find("again")?.addEventListener("click", startOver);

onSubmit("match", async file => {
  const texts = find("texts").value.split("\n").map(text => text.trim()).filter(Boolean);
  if (!texts.length) throw new Error("Write a text first.");
  if (texts.length > bounds.texts) throw new Error(`These are ${texts.length} texts; give ${bounds.texts} at most.`);
  const {itc, itm} = await (await ask("/match", {texts}, file)).json();
  const order = [...texts.keys()].sort((one, other) => itm[other] - itm[one]);
  return () => {
    find("scores").replaceChildren(...order.map(place => {
      const row = document.createElement("tr");
      row.append(element("td", texts[place]), element("td", `${(100 * itm[place]).toFixed(1)}%`), element("td", itc[place].toFixed(3)));
      return row;
    }));
    find("scores").parentElement.hidden = false;
  };
});

// The colour of a share of the map's largest value.
function colour(share) {
  const place = share * (COLOURS.length - 1), below = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[below].map((low, band) => low + (place - below) * (COLOURS[below + 1][band] - low));
}

// The picture in grey under a canvas of a pixel a patch, which the browser stretches over it.
function heatMap(values, side) {
  const canvas = document.createElement("canvas"), most = Math.max(...values);
  canvas.width = canvas.height = side;
  const pixels = values.flatMap(value => [...colour(value / most), 255]);
  canvas.getContext("2d").putImageData(new ImageData(Uint8ClampedArray.from(pixels), side, side), 0, 0);
  const image = element("img", "", {src: given.picture.address, alt: ""});
  return [image, canvas];
}

function inWords(values, side) {
  const place = values.indexOf(Math.max(...values)), third = at => Math.floor(3 * (at + 0.5) / side);
  const row = ["top", "middle", "bottom"][third(Math.floor(place / side))], column = ["left", "centre", "right"][third(place % side)];
  const percent = (100 * values.reduce((sum, value) => sum + value, 0)).toFixed(0);
  return `${percent}% of the attention is on the picture's patches, the rest on the encoder's other tokens. It is strongest at the ${row} ${column}.`;
}

onSubmit("attention", async file => {
  const question = turns.at(-1)?.[0] || find("question")?.value.trim() || null;
  const {side, queries} = await (await ask("/attention", {question}, file)).json();
  const mean = queries[0].map((_, place) => queries.reduce((sum, values) => sum + values[place], 0) / queries.length);
  const named = [["All queries", mean], ...queries.map((values, number) => [`Query ${number + 1}`, values])];
  return () => {
    const buttons = named.map(([name, values]) => {
      const button = element("button", "", {type: "button", "aria-pressed": "false"}), map = element("div", "", {class: "map"});
      map.append(...heatMap(values, side));
      button.append(map, element("span", name));
      button.addEventListener("click", () => {
        for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
        find("large").replaceChildren(...heatMap(values, side));
        find("said").textContent = `${name}: ${inWords(values, side)}`;
      });
      return button;
    });
    find("small").replaceChildren(...buttons.map(button => {
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
    find("maps").hidden = false;
    buttons[0].click();
  };
});
