// Whether the server answers: asked every few seconds while the page is seen, and told by every request.
const EVERY = 10_000;

export class Connection {
  constructor(app, node, label) {
    Object.assign(this, { app, node, label, state: "checking" });
    setInterval(() => this.check(), EVERY);
    document.addEventListener("visibilitychange", () => this.check());
    setTimeout(() => this.check());
  }

  async check() {
    if (document.hidden) return;
    try {
      const response = await fetch(new URL("health", document.baseURI), { cache: "no-store" });
      if (this.state !== "key" || !response.ok) this.set(response.ok ? "ready" : response.status === 503 ? "stopping" : "failing");
    } catch {
      this.set("away");
    }
  }

  saw(error) {
    const states = { network: "away", broken: "away", key: "key", stopping: "stopping", server: "failing" };
    if (!error) this.set("ready");
    else if (error.kind in states) this.set(states[error.kind]);
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
