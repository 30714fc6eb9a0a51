// Whether the server answers. Every request tells; besides, it is asked now and then while the page is seen, and more
// often while it does not answer.
const READY = 30_000;
const NOT_READY = 3_000;

export class Connection {
  constructor(app, node, label) {
    Object.assign(this, { app, node, label, state: "checking" });
    document.addEventListener("visibilitychange", () => this.check());
    this.check();
  }

  async check() {
    clearTimeout(this.timer);
    if (!document.hidden) {
      try {
        const response = await fetch(new URL("health", document.baseURI), { cache: "no-store" });
        if (this.state !== "key" || !response.ok) this.set(response.ok ? "ready" : response.status === 503 ? "stopping" : "failing");
      } catch {
        this.set("away");
      }
    }
    this.timer = setTimeout(() => this.check(), this.state === "ready" || this.state === "key" ? READY : NOT_READY);
  }

  saw(error) {
    const states = { network: "away", broken: "away", key: "key", stopping: "stopping", server: "failing" };
    if (!error) this.set("ready");
    else if (error.kind in states) this.set(states[error.kind]);
    if (this.state === "away") this.check();
  }

  set(state) {
    if (state === this.state) return;
    this.state = state;
    this.show();
  }

  show() {
    this.node.dataset.state = this.state;
    this.label.textContent = this.app.t(`state.${this.state}`);
  }
}
