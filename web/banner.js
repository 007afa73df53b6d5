/**
 * Vitrine's client: events out, banners in. One ES module, no dependencies.
 *
 *     import { connect } from "https://api.shop.example/banner.js";
 *     const vitrine = await connect({ api: "https://api.shop.example" });
 *     vitrine.show(document.querySelector("#home"), { slot: "home", k: 6 });
 *     vitrine.send({ type: "view", item_id: "A-17" });
 *
 * @typedef {{type: string, item_id: string, value?: number, token?: string, context?: object}} NewEvent
 * @typedef {{slot: string, answer: object, carried: string[], handlerMs?: number, roundTripMs: number}} Served
 *   `answer` as POST /v1/banners gives it; `carried`: ids of the recent events that the request brought along
 * @typedef {"queued" | "accepted" | "failed" | "invalid" | "in row"} Status failed: is sent again by itself
 */

const RECENT = 20; // events that a request brings along
const BATCH = 100; // events in a request
const BODY_CHARS = 50_000; // browsers let at most 64 KiB outlive the page
const QUEUE = 500; // kept while the API is away; beyond, the oldest go
const TIMEOUT_MS = 8_000;
const MARGIN_MS = 60_000; // a token so near its end is renewed
const HALF = 0.5;
const SEEN_MS = 1_000; // half in view for so long is an impression
const LINK = /^(https?:\/\/|\/(?![/\\]))/i;
const IMAGE = /^(https?:\/\/|\/(?![/\\])|data:image\/)/i;

/**
 * Connect a page to the API. Never rejects: what fails is told to `onerror` and tried again.
 * @param {object} [options]
 * @param {string} [options.api] where the API is; "" is the page's own host
 * @param {() => Promise<{token: string, expires: string}>} [options.visitor] how a shop gets the token of a
 *   signed-in customer; without it the API makes an anonymous visitor, kept in localStorage
 * @param {string} [options.locale] BCP 47; by default the browser's
 * @param {string} [options.currency] ISO 4217
 * @param {string} [options.dismiss] what a screen reader says of ×, before the title
 * @param {(error: Error, event?: NewEvent) => void} [options.onerror]
 * @param {(served: Served) => void} [options.onanswer]
 * @param {(event: NewEvent & {event_id: string}, status: Status) => void} [options.onstatus]
 * @returns {Promise<Vitrine>}
 */
export async function connect(options = {}) {
  const vitrine = new Vitrine(options);
  await vitrine.ready();
  return vitrine;
}

class Vitrine {
  #options = {
    api: "",
    locale: navigator.language,
    dismiss: "Not interested in",
    onerror() {},
    onanswer() {},
    onstatus() {},
  };
  #key;
  #visitor;
  #renewal;
  #queue; // not accepted yet, oldest first
  #recent; // not known to be in the user's row yet
  #dismissed = new Set();
  #views = new Set();
  #refreshing;
  #sending = false;
  #failures = 0;
  #timer;

  constructor(options) {
    Object.assign(this.#options, options);
    this.#options.locale = plain(this.#options.locale);
    this.#key = `vitrine:${this.#options.api}`;
    const { queue = [], recent = [] } = load("sessionStorage", this.#key) ?? {};
    [this.#queue, this.#recent] = [queue, recent];
    addEventListener("pagehide", () => this.#flush(true));
    addEventListener("online", () => this.#schedule(0));
  }

  /** Resolves when there is a visitor, or the first try for one has failed. */
  async ready() {
    await this.#token().catch(this.#options.onerror);
    this.#schedule(0); // what the last page could not deliver
  }

  /**
   * Send an event as soon as the API can be reached; all but an impression refresh the banners at once.
   * @param {NewEvent} event
   * @returns {string} its id, the same in every retry
   */
  send({ type, item_id, value, token, context }) {
    const event = { event_id: uuid(), type, item_id, time: new Date().toISOString(), value, token, context };
    this.#queue = [...this.#queue, event].slice(-QUEUE);
    this.#options.onstatus(event, "queued");
    if (type === "dismiss") this.#dismissed.add(item_id);
    if (type !== "impression") {
      this.#recent = [...this.#recent, event].slice(-RECENT);
      this.refresh();
    }
    this.#keep();
    if (!this.#failures) this.#schedule(10);
    return event.event_id;
  }

  /**
   * Keep an element filled with a slot's banners, until it leaves the document.
   * @param {Element} element
   * @param {{slot: string, k?: number}} options `k` reserves the room before the first answer
   * @returns {Promise<void>} after the first answer
   */
  show(element, { slot, k }) {
    const view = new View(element, k, this.#options, (type, { item_id, token }) =>
      this.send({ type, item_id, token, context: { slot } }),
    );
    this.#views.add(Object.assign(view, { slot, k }));
    return this.#update(view);
  }

  /** Ask again for every slot shown; where that fails, the last banners stay until a later try. */
  refresh() {
    this.#refreshing ??= Promise.resolve().then(() => {
      this.#refreshing = undefined;
      return Promise.all([...this.#views].map((view) => this.#update(view)));
    });
    return this.#refreshing;
  }

  /**
   * A slot's banners without showing them; rejects where there is no answer.
   * @param {{slot: string, k?: number}} options
   * @returns {Promise<Served>}
   */
  async ask({ slot, k }) {
    const { locale, currency } = this.#options;
    const recent_events = this.#recent;
    const start = performance.now();
    const response = await this.#call("/v1/banners", { slot, k, locale, currency, recent_events });
    const answer = await content(response);
    const roundTripMs = performance.now() - start;
    for (const event of recent_events.filter(({ event_id }) => answer.already_in_row.includes(event_id))) {
      this.#recent = this.#recent.filter((other) => other !== event);
      this.#options.onstatus(event, "in row");
    }
    this.#keep();
    const handler = /handler;dur=([\d.]+)/.exec(response.headers.get("Server-Timing"));
    const carried = recent_events.map(({ event_id }) => event_id);
    return { slot, answer, carried, handlerMs: handler ? Number(handler[1]) : undefined, roundTripMs };
  }

  /** Become somebody new, without anything that this visitor did. */
  async restart() {
    this.#flush(true);
    [this.#queue, this.#recent] = [[], []];
    this.#dismissed.clear();
    this.#keep();
    this.#visitor = undefined;
    save("localStorage", this.#key);
    await this.ready();
    await this.refresh();
  }

  async #update(view) {
    if (!view.element.isConnected) return this.#views.delete(view);
    clearTimeout(view.timer);
    const turn = (view.turn = (view.turn ?? 0) + 1); // a later request overtakes this one
    view.render(this.#dismissed);
    try {
      const served = await this.ask(view);
      if (view.turn !== turn) return;
      view.failures = 0;
      view.banners = served.answer.banners;
      view.render(this.#dismissed);
      this.#options.onanswer(served);
    } catch (error) {
      if (view.turn !== turn) return;
      this.#options.onerror(error);
      if (hopeless(error.status)) return;
      view.failures = (view.failures ?? 0) + 1;
      view.timer = setTimeout(() => this.#update(view), backoffMs(view.failures));
    }
  }

  #schedule(delayMs) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#flush(), delayMs);
  }

  async #flush(leaving) {
    if (!this.#queue.length || (this.#sending && !leaving)) return;
    this.#sending = true;
    const batch = fitting(this.#queue); // when leaving, what is under way goes again: its ids are known
    const fates = await this.#deliver(batch);
    this.#sending = false;
    this.#queue = this.#queue.filter((event) => (fates.get(event) ?? "failed") === "failed");
    this.#recent = this.#recent.filter((event) => fates.get(event) !== "invalid");
    this.#keep();
    const failed = [...fates.values()].includes("failed");
    if ((this.#failures && !failed) || [...fates.values()].includes("invalid")) this.refresh();
    this.#failures = failed ? this.#failures + 1 : 0;
    for (const [event, status] of fates) this.#options.onstatus(event, status);
    if (this.#queue.length) this.#schedule(failed ? backoffMs(this.#failures) : 0);
  }

  /** One request → what became of each event. */
  async #deliver(events) {
    try {
      const response = await this.#call("/v1/events", { events }, { keepalive: true });
      const body = await response.json().catch(() => ({}));
      const { status } = response;
      const invalid = hopeless(status);
      if (!body.results && !invalid) throw new Error(`${status} ${reason(body)}`);
      const results = new Map(body.results?.map((result) => [result.event_id, result]));
      if (status >= 500) this.#options.onerror(new Error(`${status} ${reason(body)}`));
      return new Map(events.map((event) => [event, this.#judge(event, results.get(event.event_id), invalid, body)]));
    } catch (error) {
      this.#options.onerror(error);
      return new Map(events.map((event) => [event, "failed"]));
    }
  }

  #judge(event, result, invalid, body) {
    const status = result?.status ?? (invalid ? "invalid" : "failed");
    if (status !== "invalid") return status;
    if (event.token) {
      delete event.token; // too old, or the last visitor's: what was done counts without it
      return "failed";
    }
    this.#options.onerror(new Error(result?.error ?? reason(body)), event);
    return status;
  }

  async #call(path, body, init) {
    const post = (token) => request(this.#options.api + path, {
      body: JSON.stringify(body),
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      ...init,
    });
    const token = await this.#token();
    const response = await post(token);
    return response.status === 401 ? post(await this.#token(token)) : response;
  }

  /** The visitor's token; a new one when there is none, it is over, or it was `refused`. */
  async #token(refused) {
    const { api, visitor } = this.#options;
    if (!visitor) this.#visitor = load("localStorage", this.#key) ?? this.#visitor; // another tab's, maybe
    const { token, expires } = this.#visitor ?? {};
    if (token && token !== refused && !(Date.parse(expires) - MARGIN_MS < Date.now())) return token;
    const renew = visitor ?? (() => request(`${api}/v1/visitors`).then(content));
    this.#renewal ??= renew().finally(() => (this.#renewal = undefined));
    this.#visitor = await this.#renewal;
    if (!visitor) save("localStorage", this.#key, this.#visitor);
    if (refused) this.refresh(); // the decisions on the page were for the one before
    return this.#visitor.token;
  }

  #keep() {
    save("sessionStorage", this.#key, { queue: this.#queue, recent: this.#recent });
  }
}

/** The banners of one slot in one element: the places stay, what they show changes. */
class View {
  banners = [];
  #places = [];

  constructor(element, k = 0, options, act) {
    Object.assign(this, { element, options, act });
    this.label = make("p", "label");
    this.list = make("ul", "list");
    this.list.setAttribute("role", "list"); // Safari forgets it where list-style is none
    this.news = make("p", "news");
    this.news.setAttribute("aria-live", "polite");
    this.news.style.cssText = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)";
    element.replaceChildren(this.label, this.list, this.news);
    this.#reserve(k);
  }

  render(dismissed) {
    const banners = this.banners.filter(({ item_id }) => !dismissed.has(item_id));
    const focused = this.#places.find(({ root }) => root.contains(document.activeElement));
    this.#reserve(banners.length);
    const fresh = this.#places.filter((place, position) => place.fill(banners[position]));
    if (focused && !focused.banner) this.#places.findLast(({ banner }) => banner)?.link.focus();
    if (!fresh.length) return;
    this.label.textContent = this.list.ariaLabel = banners[0].label;
    this.news.textContent = `${banners[0].label}: ${fresh.map(({ banner }) => banner.title).join(", ")}`;
  }

  #reserve(count) {
    while (this.#places.length < count) this.#places.push(new Place(this));
    this.list.append(...this.#places.slice(this.list.children.length).map(({ root }) => root));
  }
}

/** One place in the list. Everything that the API says goes into textContent or a checked URL. */
class Place {
  banner;
  #visible = false;
  #timer;
  #reported; // the token of the decision that has been an impression

  constructor(view) {
    this.view = view;
    this.root = make("li", "banner");
    this.link = make("a", "link");
    this.image = make("img", "image", { width: 400, height: 300 });
    [this.title, this.price, this.tags] = ["title", "price", "tags"].map((name) => make("span", name));
    this.close = make("button", "dismiss", { type: "button", textContent: "×" });
    this.link.append(this.image, this.title, this.price, this.tags);
    this.root.append(this.link, this.close);
    this.close.addEventListener("click", () => view.act("dismiss", this.banner));
    this.link.addEventListener("click", (click) => {
      if (this.link.getAttribute("href") === "#") click.preventDefault();
      view.act("click", this.banner);
    });
    const seen = (entries) => this.#watch(entries.at(-1).intersectionRatio >= HALF);
    new IntersectionObserver(seen, { threshold: HALF }).observe(this.root);
    this.fill();
  }

  /** Show a banner, or an empty place; whether it is another item than before. */
  fill(banner) {
    const { token, item_id } = this.banner ?? {};
    this.banner = banner;
    this.root.classList.toggle("vitrine-empty", !banner);
    this.link.hidden = this.close.hidden = !banner;
    if (token !== banner?.token) this.#watch(this.#visible);
    if (!banner || token === banner.token) return false;
    this.link.href = LINK.test(banner.link) ? banner.link : "#";
    this.title.textContent = banner.title;
    this.price.textContent = money(banner.price, this.view.options.locale);
    this.tags.replaceChildren(...banner.tags.map((textContent) => make("span", "tag", { textContent })));
    this.close.ariaLabel = `${this.view.options.dismiss} ${banner.title}`;
    if (item_id === banner.item_id) return false;
    this.image.src = IMAGE.test(banner.image.url) ? banner.image.url : "";
    this.image.alt = banner.image.alt;
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.link.animate({ opacity: [0, 1] }, 300);
    return true;
  }

  /** An impression is one decision, half in view for SEEN_MS in a page that is not hidden. */
  #watch(visible) {
    this.#visible = visible;
    clearTimeout(this.#timer);
    if (!visible || !this.banner || this.banner.token === this.#reported) return;
    this.#timer = setTimeout(() => {
      if (document.hidden) return this.#watch(true);
      this.#reported = this.banner.token;
      this.view.act("impression", this.banner);
    }, SEEN_MS);
  }
}

/**
 * An amount in a currency, as the locale writes it; "" for none.
 * @param {{amount: number | null, currency: string}} price
 * @param {string} [locale]
 */
export function money({ amount, currency }, locale) {
  if (amount === null) return "";
  try {
    return new Intl.NumberFormat(locale, { style: "currency", currency }).format(amount);
  } catch {
    return `${amount} ${currency}`; // a currency or a locale that the browser does not know
  }
}

const make = (tag, name, more) =>
  Object.assign(document.createElement(tag), { className: `vitrine-${name}`, ...more });
const backoffMs = (failures) => Math.min(30_000, 250 * 2 ** failures) * (0.5 + Math.random() / 2);
const hopeless = (status) => status >= 400 && status < 500 && ![401, 408, 429].includes(status);
const request = (url, init) =>
  fetch(url, { method: "POST", signal: AbortSignal.timeout(TIMEOUT_MS), ...init });

/** The JSON of a good answer; rejects with the problem of any other. */
async function content(response) {
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw Object.assign(new Error(`${response.status} ${reason(body)}`), { status: response.status });
}

function reason({ title, detail, errors = [] }) {
  const faults = errors.map(({ field, value, expected }) => `${field} ${JSON.stringify(value)}; expected ${expected}`);
  return [title, detail, ...faults].filter(Boolean).join(": ");
}

/** Language and region; nothing of what a browser may put behind them ("en-US@posix"). */
function plain(locale) {
  const [tag] = /^[a-z]{2,3}(-[a-z]{2})?\b/i.exec(locale) ?? [];
  return tag;
}

/** The longest head of the queue that one request may carry; at least one event. */
function fitting(queue) {
  const events = queue.slice(0, BATCH);
  while (events.length > 1 && JSON.stringify(events).length > BODY_CHARS) events.length >>= 1;
  return events;
}

function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID(); // absent where the page came over plain http
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A browser may refuse storage altogether: then the visit lasts as long as the page.
function load(storage, key) {
  try {
    return JSON.parse(globalThis[storage].getItem(key));
  } catch {
    return null;
  }
}

function save(storage, key, value) {
  try {
    if (value) globalThis[storage].setItem(key, JSON.stringify(value));
    else globalThis[storage].removeItem(key);
  } catch {}
}
