// Calls `work(signal)` now and again: `pause()` milliseconds after it ended, only while the page is seen. Errors are given to
// `failed`. Returns a function that ends it.
export function polled(work, pause, failed) {
  const ending = new AbortController();
  let timer = null;
  let running = false;

  async function turn() {
    clearTimeout(timer);
    if (document.hidden || running || ending.signal.aborted) return;
    running = true;
    try {
      await work(ending.signal);
    } catch (error) {
      if (error.name !== "AbortError") failed(error);
    }
    running = false;
    if (!ending.signal.aborted) timer = setTimeout(turn, pause());
  }

  document.addEventListener("visibilitychange", turn, { signal: ending.signal });
  turn();
  return () => {
    ending.abort();
    clearTimeout(timer);
  };
}
