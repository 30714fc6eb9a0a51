// Spans and points of time in the reader's words.

export function duration(app, seconds) {
  const { t } = app;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return t("time.seconds", { s: whole });
  const minutes = Math.round(whole / 60);
  if (minutes < 60) return t("time.minutes", { m: minutes });
  const [hours, rest] = [Math.floor(minutes / 60), minutes % 60];
  if (hours < 48) return rest ? t("time.hours", { h: hours, m: rest }) : t("time.whole", { h: hours });
  return t("time.days", { d: Math.floor(hours / 24), h: hours % 24 });
}

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

// "5 minutes ago"; `now` by the same clock as `then`.
export function ago(app, then, now) {
  const seconds = Math.max(0, now - then);
  if (seconds < 5) return app.t("time.now");
  const [unit, size] = UNITS.find(([, least]) => seconds >= least);
  return new Intl.RelativeTimeFormat(app.tag, { numeric: "always" }).format(-Math.floor(seconds / size), unit);
}
