// Hover, click and keys on the points of a plot; and the table of measurements: filter, order, pages.
(() => {
  "use strict";
  const holder = document.getElementById("rows");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const at = Object.fromEntries(data.columns.map((column, k) => [column.key, k]));
  const superscript = (digits) => [...digits].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");

  const show = {
    text: (value) => value,
    choice: (value, column) => column.values[value],
    trial: (value) => data.trials[value][0],
    whole: (value) => value.toLocaleString("en"),
    plain: (value) => String(Number(value.toPrecision(5))),
    count: (value) => {
      for (const [unit, size] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["K", 1e3]])
        if (value >= 0.9995 * size) return Number((value / size).toPrecision(3)) + unit;
      return String(Number(value.toPrecision(3)));
    },
    power: (value) => {
      const [mantissa, exponent] = value.toExponential(2).split("e");
      const ten = "10" + superscript(String(Number(exponent)));
      return Number(mantissa) === 1 ? ten : Number(mantissa) + "×" + ten;
    },
    hours: (value) =>
      value < 1 / 30 ? (3600 * value).toFixed(0) + " s" : value < 2 ? (60 * value).toFixed(0) + " min" : value.toFixed(1) + " h",
  };
  const cell = (row, key) => {
    const column = data.columns[at[key]], value = row[at[key]];
    return value === null || value === undefined ? "" : show[column.kind](value, column);
  };
  const linked = data.trials.some((trial) => trial[1]);
  const address = (row) => data.trials[row[at.trial]][1];

  function words(row) {
    const measured = data.columns.filter((c) => c.measured && row[at[c.key]] !== null).map((c) => c.title + " " + cell(row, c.key));
    const reason = row[at.reason] === null ? "" : ": " + cell(row, "reason");
    const lines = [
      `${cell(row, "arm")} ${cell(row, "size")} (${cell(row, "params")} parameters), lr ${cell(row, "learning_rate")}, seed ${cell(row, "seed")}`,
      measured.join(", "),
      `${cell(row, "flops")} FLOPs, ${cell(row, "samples")} samples`,
      cell(row, "outcome") + reason,
    ];
    if (address(row)) lines.push("click: its MLflow run");
    return lines.filter(Boolean).join("\n");
  }

  function enliven(plot) {
    const points = JSON.parse(plot.querySelector("script.points").textContent);
    const svg = plot.querySelector("svg"), box = svg.viewBox.baseVal;
    const ring = document.createElement("div"), tip = document.createElement("div");
    ring.className = "ring"; tip.className = "tip"; tip.setAttribute("role", "status");
    let current = -1;
    plot.classList.add("live");
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", plot.dataset.name + ": left and right arrow keys step through the measurements" + (linked ? ", Enter opens the run" : ""));

    const place = (k) => {
      const frame = svg.getBoundingClientRect(), outer = plot.getBoundingClientRect();
      const scale = frame.width / box.width;
      return [frame.left - outer.left + plot.scrollLeft + points.x[k] * scale, frame.top - outer.top + points.y[k] * scale];
    };
    const hide = () => { ring.remove(); tip.remove(); plot.classList.remove("at"); current = -1; };
    const point = (k) => {
      if (k === current) return;
      current = k;
      const row = data.rows[points.i[k]], [x, y] = place(k);
      plot.append(ring, tip);
      tip.textContent = words(row);
      ring.style.left = x + "px"; ring.style.top = y + "px";
      const width = Math.min(300, plot.clientWidth - 16);
      tip.style.maxWidth = width + "px";
      tip.style.left = Math.max(4, Math.min(x + 12, plot.scrollLeft + plot.clientWidth - tip.offsetWidth - 4)) + "px";
      tip.style.top = (y + tip.offsetHeight + 18 < plot.clientHeight ? y + 12 : y - tip.offsetHeight - 12) + "px";
      plot.classList.toggle("at", Boolean(address(row)));
    };
    const nearest = (event) => {
      const frame = svg.getBoundingClientRect(), scale = box.width / frame.width;
      const x = (event.clientX - frame.left) * scale, y = (event.clientY - frame.top) * scale;
      let best = -1, least = (24 * scale) ** 2;
      for (let k = 0; k < points.x.length; k++) {
        const distance = (points.x[k] - x) ** 2 + (points.y[k] - y) ** 2;
        if (distance < least) { least = distance; best = k; }
      }
      return best;
    };
    const open = () => {
      const link = current >= 0 && address(data.rows[points.i[current]]);
      if (link) window.open(link, "_blank", "noopener");
    };
    plot.addEventListener("pointermove", (event) => { const k = nearest(event); k < 0 ? hide() : point(k); });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("click", (event) => {
      const k = nearest(event), touched = event.pointerType === "touch" && k !== current;
      if (k < 0) return;
      point(k);
      if (!touched) open();
    });
    const order = [...points.x.keys()].sort((a, b) => points.x[a] - points.x[b] || points.y[a] - points.y[b]);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        const here = order.indexOf(current);
        point(order[(here + step + (here < 0 && step < 0 ? 1 : 0) + order.length) % order.length]);
        event.preventDefault();
      } else if (event.key === "Enter") open();
      else if (event.key === "Escape") hide();
    });
  }

  function tabulate(section) {
    const PAGE = 100, body = section.querySelector("tbody"), heads = [...section.querySelectorAll("th")];
    const columns = data.columns.filter((column) => column.title && column.shown);
    let rows = data.rows, page = 0, ordered = null, upwards = true;
    const tools = document.createElement("div"), filter = document.createElement("input"), count = document.createElement("span");
    const back = document.createElement("button"), on = document.createElement("button");
    tools.className = "tools";
    filter.type = "search"; filter.placeholder = "filter, as: mup w96 diverged";
    filter.setAttribute("aria-label", "Filter measurements by words");
    count.setAttribute("role", "status");
    back.textContent = "previous"; on.textContent = "next";
    tools.append(filter, count, back, on);
    section.querySelector(".box").before(tools);

    const texts = new Map();
    const text = (row) => {
      if (!texts.has(row)) texts.set(row, columns.map((c) => cell(row, c.key)).join(" ").toLowerCase());
      return texts.get(row);
    };
    const draw = () => {
      const part = rows.slice(page * PAGE, (page + 1) * PAGE);
      body.replaceChildren(...part.map((row) => {
        const line = document.createElement("tr");
        for (const column of columns) {
          const entry = document.createElement("td");
          if (column.words) entry.className = "text";
          if (column.key === "trial" && address(row)) {
            const link = document.createElement("a");
            link.href = address(row); link.target = "_blank"; link.rel = "noopener"; link.textContent = cell(row, "trial");
            entry.append(link);
          } else entry.textContent = cell(row, column.key);
          if (column.key === "outcome" && entry.textContent !== "ok") {
            entry.classList.add("diverged"); entry.title = cell(row, "reason");
          }
          line.append(entry);
        }
        return line;
      }));
      report();
    };
    const report = () => {
      const last = Math.min((page + 1) * PAGE, rows.length);
      count.textContent = rows.length ? `${page * PAGE + 1} to ${last} of ${rows.length}` : "none";
      back.disabled = page === 0; on.disabled = last >= rows.length;
    };
    const choose = () => {
      const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows = data.rows.filter((row) => wanted.every((word) => text(row).includes(word)));
      if (ordered !== null) {
        const column = columns[ordered], k = at[column.key], sign = upwards ? 1 : -1;
        const key = (row) => (["choice", "trial", "text"].includes(column.kind) ? cell(row, column.key) : row[k]);
        rows.sort((a, b) => {
          const [x, y] = [key(a), key(b)];
          return x === y ? 0 : x === null ? 1 : y === null ? -1 : x < y ? -sign : sign;
        });
      }
      page = 0;
      draw();
    };
    heads.forEach((head, k) => {
      const button = document.createElement("button");
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        upwards = ordered === k ? !upwards : true;
        ordered = k;
        heads.forEach((other, m) => (m === k ? other.setAttribute("aria-sort", upwards ? "ascending" : "descending") : other.removeAttribute("aria-sort")));
        choose();
      });
    });
    filter.addEventListener("input", choose);
    back.addEventListener("click", () => { page -= 1; draw(); });
    on.addEventListener("click", () => { page += 1; draw(); });
    draw();
  }

  document.querySelectorAll(".plot").forEach((plot) => { if (plot.querySelector("script.points")) enliven(plot); });
  const section = document.getElementById("measurements");
  if (section && section.querySelector("tbody")) tabulate(section);
})();
