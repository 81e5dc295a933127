"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const SHORT = 240;
let matching = [];
let drawn = 0;

/* Every text goes in as text, never as markup. */
function make(tag, attributes, ...inside) {
  const svg = ["svg", "polyline", "line", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...inside);
  return node;
}

function isolated(text) {
  return make("bdi", {}, text);
}

function picture(card) {
  if (!card.file || card.status === "unreadable") {
    return make("div", { class: "picture none" }, card.problem ? "no video" : "no video yet");
  }
  const [width, height] = card.size;
  const still = calm || !card.poster;
  const attributes = { src: card.file, preload: still ? "metadata" : "none", controls: "", loop: "", playsinline: "", "aria-label": card.text || card.id };
  const video = make("video", attributes);
  video.muted = true;
  if (!still) video.poster = card.poster;
  if (height < 240) video.className = "pixels";
  return make("div", { class: "picture", style: `aspect-ratio: ${width} / ${height}` }, video);
}

function prompt(card) {
  if (card.text.length <= SHORT) return make("p", { class: "prompt" }, isolated(card.text || card.id));
  return make("details", { class: "prompt" }, make("summary", {}, isolated(card.text.slice(0, 60) + "…")), isolated(card.text));
}

function curve(points, name, figure) {
  const svg = make("svg", { viewBox: "0 -4 100 108", preserveAspectRatio: "none", role: "img", "aria-label": `${name} over the frames, ${figure}` });
  const step = 100 / Math.max(1, points.length - 1);
  const still = 100 - points[0];
  svg.append(make("line", { x1: 0, x2: 100, y1: still, y2: still }));
  svg.append(make("polyline", { points: points.map((value, number) => `${(number * step).toFixed(1)},${100 - value}`).join(" ") }));
  return svg;
}

function curves(card) {
  const rows = data.metrics.flatMap((metric, number) => {
    const name = make("span", { title: metric.about }, metric.name);
    return [name, curve(card.points[number], metric.name, card.figures[number]), make("b", {}, card.figures[number])];
  });
  return make("div", { class: "curves" }, ...rows);
}

function drawnCard(card) {
  const tags = make("p", { class: "tags" }, make("span", { class: `status ${card.status.replace(" ", "-")}` }, card.status));
  if (card.label) tags.append(make("span", { class: "label" }, isolated(card.label)));
  if (card.file && card.status !== "unreadable") tags.append(make("a", { href: card.file, "aria-label": `mp4 of ${card.id}` }, "mp4"));
  const body = make("div", { class: "body" }, prompt(card), tags);
  if ("frame" in card) {
    const told = `${card.frame} of ${card.frames} frames`;
    body.append(make("progress", { max: card.frames, value: card.frame, "aria-label": told }), make("p", { class: "facts" }, told));
  }
  if (card.problem) body.append(make("p", { class: "problem" }, isolated(card.problem)));
  if (card.points) body.append(curves(card));
  if (card.seams) body.append(make("ul", { class: "seams", "aria-label": "Joins of clips" }, ...card.seams.map((told) => make("li", {}, told))));
  body.append(make("p", { class: "facts" }, [card.id, ...(card.facts || [])].join(" · ")));
  return make("article", { tabindex: -1, "data-id": card.id }, picture(card), body);
}

function drawMore() {
  const next = matching.slice(drawn, drawn + data.at_a_time).map(drawnCard);
  at("videos").append(...next);
  drawn += next.length;
  const left = matching.length - drawn;
  at("more").hidden = left === 0;
  at("more").textContent = `Show ${Math.min(left, data.at_a_time)} more`;
  at("count").textContent = `${matching.length} of ${data.cards.length} videos` + (left ? `, ${drawn} drawn` : "");
  return next[0];
}

function ordered(cards, metric) {
  if (metric < 0) return cards;
  const far = (card) => (card.drift ? card.drift[metric] : -1);
  return [...cards].sort((a, b) => far(b) - far(a));
}

function apply() {
  const words = at("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = at("status").value;
  const label = at("label").selectedIndex > 0 ? at("label").value : null;
  const found = data.cards.filter((card) => {
    const text = `${card.id} ${card.text}`.toLowerCase();
    return (!status || card.status === status) && (label === null || card.label === label) && words.every((word) => text.includes(word));
  });
  matching = ordered(found, Number(at("order").value));
  drawn = 0;
  at("videos").replaceChildren();
  drawMore();
}

function fill(select, options) {
  select.append(...options.map(([value, text]) => make("option", { value }, text)));
}

const labels = [...new Set(data.cards.map((card) => card.label))].sort();
at("labels").hidden = labels.length < 2 && !labels[0];
fill(at("status"), [["", "all"], ...data.statuses.map(([status, count]) => [status, `${status} (${count})`])]);
fill(at("label"), [["", "all"], ...labels.map((label) => [label, label || "(none)"])]);
fill(at("order"), [["-1", "id"], ...data.metrics.map((metric, number) => [number, `drift: ${metric.name}`])]);
at("filters").addEventListener("input", apply);
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("more").addEventListener("click", () => {
  const first = drawMore();
  if (first) first.focus({ preventScroll: true });
});
apply();
