// What is known of one run: the whole answer at first, then only what is new of its curves.

const path = (id) => `ui/runs/${id.split("/").map(encodeURIComponent).join("/")}`;

export class RunStore {
  constructor(id) {
    Object.assign(this, { id, run: null, now: 0, curves: null, settings: null, summary: null, results: null, notes: [] });
  }

  get changed() {
    return !this.run || this.run.state === "training" || (this.curves && this.curves.bytes_left > 0);
  }

  // Fetches what is new; the rest too where files other than the logs have changed.
  async refresh(api, signal) {
    const known = this.settings && this.curves;
    const query = known ? `?since=${this.curves.complete}&version=${encodeURIComponent(this.curves.version)}` : "";
    const found = await api.get(path(this.id) + query, { signal });
    const stale = this.run && this.run.revision !== found.run.revision;
    this.take(found);
    if (known && stale) this.take(await api.get(path(this.id), { signal }));
  }

  take(found) {
    const { curves } = found;
    if (curves && curves.since > 0 && this.curves) {
      const old = this.curves.training;
      const kept = old.step.filter((step) => step <= curves.since).length;
      for (const name of Object.keys(old)) curves.training[name] = old[name].slice(0, kept).concat(curves.training[name]);
    }
    Object.assign(this, { run: found.run, now: found.now, curves: curves || this.curves });
    if (found.settings) {
      Object.assign(this, { settings: found.settings, summary: found.summary || {}, results: found.results, notes: found.notes });
    }
  }

  get allNotes() {
    return [...this.run.notes, ...this.notes, ...(this.curves ? this.curves.notes : []), ...(this.results ? this.results.notes : [])];
  }
}
