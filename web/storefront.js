/**
 * The demo shop: products to click on, banners that follow, and a panel that says what just happened.
 * All that a real shop would need of this is `connect`, `show` and `send`; see banner.js.
 */
import { connect, money } from "./banner.js";

const BANNERS = 4;
const PRODUCTS = 24;
const EVENTS = 8; // lines in the list of events
const BARS = 24; // handler times in the little chart
const ARRIVAL_POLLS = 40; // how often at most to ask whether an event has reached the row
const POLL_MS = 300;
const TIERS = {
  personal: "ranked by this visitor's own vector",
  rebuilt: "ranked by a vector refolded from the ring",
  popular: "what sells best: nothing known of this visitor",
  house: "the house banner: nothing else could be read",
};
const ACTS = {
  view: "view",
  click: "click",
  cart: "add to cart",
  purchase: "purchase",
  dismiss: "dismissal",
  rating: "rating",
};

const at = (id) => document.getElementById(id);
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// -- the panel ---------------------------------------------------------------------------------------------

const sent = new Map(); // event id → { event, status, start, acceptedMs, rowMs }
const titles = new Map(); // item id → title
const handlerTimes = [];
let served = null; // the last answer
let polling = false;

function onanswer(now) {
  served = now;
  for (const { item_id, title } of now.answer.banners) titles.set(item_id, title);
  drawAnswer();
  at("notice").hidden = true;
}

function drawAnswer() {
  const { answer, handlerMs, roundTripMs } = served;
  at("tier").dataset.tier = answer.tier;
  say(at("tier"), answer.tier, TIERS[answer.tier] ?? "");
  at("handler").textContent = handlerMs?.toFixed(1) ?? "–";
  at("trip").textContent = roundTripMs.toFixed(0);
  at("row").textContent = answer.versions.row;
  at("bundle").textContent = (answer.versions.bundle || "–").slice(0, 10);
  at("space").textContent = (answer.versions.state_space || "–").slice(0, 10);
  if (handlerMs !== undefined) drawBars(handlerMs);
  drawFreshness();
}

function drawBars(handlerMs) {
  handlerTimes.push(handlerMs);
  if (handlerTimes.length > BARS) handlerTimes.shift();
  const most = Math.max(...handlerTimes);
  at("bars").replaceChildren(...handlerTimes.map((ms) => {
    const bar = make("i");
    bar.style.height = `${Math.max(8, (100 * ms) / most)}%`;
    return bar;
  }));
}

/** What the last answer's vector knows: this page's newest event, or the time that the API told. */
function drawFreshness() {
  if (!served) return;
  const { answer, carried } = served;
  const newest = [...sent.values()].findLast(({ event, status }) => advances(event) && status !== "invalid");
  const { event_id, type, time } = newest?.event ?? {};
  const stored = newest?.rowMs !== undefined;
  if (newest && (stored || (carried.includes(event_id) && answer.folded_ahead > 0))) {
    const where = stored ? "in the stored row" : `folded ahead of the stream (${answer.folded_ahead})`;
    return say(at("fresh"), `Includes your ${ACTS[type]} of ${ago(time)} ago`, where);
  }
  if (newest) return say(at("fresh"), `Your ${ACTS[type]} of ${ago(time)} ago is not in yet`, "waiting for the next answer");
  if (!answer.last_event_time) return say(at("fresh"), "No event yet", "click a product and watch the banners");
  say(at("fresh"), `Includes your event of ${ago(answer.last_event_time)} ago`, "in the stored row");
}

function ago(time) {
  const seconds = Math.max(0, Date.now() - Date.parse(time)) / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 100) return `${seconds.toFixed(0)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(0)} h`;
}

function say(element, headline, detail) {
  const [bold, small] = element.children;
  if (bold.textContent !== headline) bold.textContent = headline;
  if (small.textContent !== detail) small.textContent = detail;
}

function onstatus(event, status) {
  const now = performance.now();
  const line = sent.get(event.event_id) ?? { event, start: now };
  line.status = status;
  if (status === "accepted") line.acceptedMs = now - line.start;
  if (status === "in row") line.rowMs = now - line.start;
  sent.set(event.event_id, line);
  drawEvents();
  drawFreshness();
  if (onItsWay(line)) awaitArrival();
}

function drawEvents() {
  const all = [...sent.values()];
  const seen = all.filter(({ event, status }) => !advances(event) && status === "accepted").length;
  at("seen").hidden = !seen;
  at("seen").textContent = `and ${seen} impression${seen === 1 ? "" : "s"}: half of a banner in view for a second`;
  const last = all.filter(({ event }) => advances(event)).slice(-EVENTS).reverse();
  if (!last.length) return;
  at("events").replaceChildren(...last.map(({ event, status, acceptedMs, rowMs }) => {
    const steps = make("span", { className: "steps" }, make("i"), make("i"), make("i"));
    const line = make(
      "li",
      {},
      make("b", { textContent: ACTS[event.type] }),
      make("span", { className: "what", textContent: titles.get(event.item_id) ?? event.item_id }),
      steps,
      make("span", { className: "when", textContent: progress(status, acceptedMs, rowMs) }),
    );
    line.dataset.status = status;
    return line;
  }));
}

function progress(status, acceptedMs, rowMs) {
  if (status === "queued") return "sent …";
  if (status === "failed") return "not delivered yet, trying again";
  if (status === "invalid") return "refused";
  const accepted = acceptedMs === undefined ? "accepted" : `accepted ${acceptedMs.toFixed(0)} ms`;
  return rowMs === undefined ? `${accepted} · on its way` : `${accepted} · in the row ${rowMs.toFixed(0)} ms`;
}

/** Ask, without changing the banners, until the row has every accepted event. A real shop has no need to. */
async function awaitArrival() {
  if (polling) return;
  polling = true;
  for (let poll = 0; poll < ARRIVAL_POLLS && [...sent.values()].some(onItsWay); poll += 1) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    const now = await vitrine.ask({ slot: "home", k: 1 }).catch(() => null);
    if (now) at("row").textContent = Math.max(now.answer.versions.row, served?.answer.versions.row ?? 0);
  }
  polling = false;
}

const advances = ({ type }) => type !== "impression"; // an impression goes to the frequency caps alone
const onItsWay = ({ event, status }) => status === "accepted" && advances(event);

function onerror(error, event) {
  at("notice").hidden = false;
  at("notice").textContent = event
    ? `The shop refused an event: ${error.message}`
    : `The shop cannot be reached (${error.message}). You see the last banners; events are kept and sent again.`;
}

// -- the shelves -------------------------------------------------------------------------------------------

let basket = 0;
let category = "";

function product({ item_id, title, price, tags, image, category: shelf }) {
  titles.set(item_id, title);
  const act = (type, textContent, className) => {
    const button = make("button", { type: "button", textContent, className });
    button.ariaLabel = `${textContent}: ${title}`;
    button.addEventListener("click", () => react(type, { item_id, price }));
    return button;
  };
  const open = make(
    "button",
    { type: "button", className: "open" },
    make("img", { src: image.url, alt: "", width: 400, height: 300, loading: "lazy" }),
    make("span", { className: "shelf", textContent: shelf }),
    make("span", { className: "title", textContent: title }),
    make("span", { className: "tags" }, ...tags.map((tag) => make("span", { className: "tag", textContent: tag }))),
  );
  open.addEventListener("click", () => react("view", { item_id, price }));
  const buy = make(
    "div",
    { className: "buy" },
    make("span", { className: "price", textContent: money(price) }),
    act("cart", "Add to cart", "quiet"),
    act("purchase", "Buy", "strong"),
  );
  const card = make("li", { className: "product" }, open, buy);
  card.dataset.item = item_id;
  return card;
}

function react(type, { item_id, price }) {
  if (type === "cart") at("basket").textContent = basket += 1;
  const value = type === "cart" || type === "purchase" ? (price.amount ?? undefined) : undefined;
  vitrine.send({ type, item_id, value, context: { slot: "shelves" } });
  const card = at("grid").querySelector(`[data-item="${CSS.escape(item_id)}"]`);
  for (const other of at("grid").querySelectorAll(".touched")) other.classList.remove("touched");
  card?.classList.add("touched");
}

async function stock(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${response.status} for ${path}`);
  return response.json();
}

async function fillShelves() {
  const asked = category;
  const query = new URLSearchParams({ limit: PRODUCTS, ...(asked && { category: asked }) });
  const { products } = await stock(`demo/products?${query}`);
  if (asked === category) at("grid").replaceChildren(...products.map(product));
}

async function fillChips() {
  const { categories } = await stock("demo/categories");
  const chips = ["", ...categories].map((name) => {
    const chip = make("button", { type: "button", textContent: name || "Everything" });
    chip.ariaPressed = String(name === category);
    chip.addEventListener("click", () => {
      category = name;
      for (const other of chips) other.ariaPressed = String(other === chip);
      fillShelves().catch(onerror);
    });
    return chip;
  });
  at("chips").replaceChildren(...chips);
}

// -- the start ---------------------------------------------------------------------------------------------

const vitrine = await connect({ onanswer, onstatus, onerror });
at("newcomer").addEventListener("click", () => {
  sent.clear();
  handlerTimes.length = basket = 0;
  at("basket").textContent = "0";
  at("events").replaceChildren(make("li", { className: "none", textContent: "none so far" }));
  at("seen").hidden = true;
  vitrine.restart();
});
at("home").addEventListener("click", (click) => {
  if (click.target.closest("a")) click.preventDefault(); // a demo has no product pages to go to
});
setInterval(drawFreshness, 100);
vitrine.show(at("home"), { slot: "home", k: BANNERS });
fillChips().catch(onerror);
fillShelves().catch(onerror);
