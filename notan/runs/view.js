'use strict';
// The page of `notan view`. Points are drawn by WebGL, pictures and rings on a canvas above it. Everything that comes from the
// index is put in as text.
(async () => {
const $ = id => document.getElementById(id);
const points = $('points'), over = $('over'), area = $('map'), tip = $('tip'), brush = over.getContext('2d');
const ask = async (where, signal) => {
  const answer = await fetch(where, { signal }), type = answer.headers.get('Content-Type');
  if (type !== 'application/json') return answer.arrayBuffer();
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
};
const make = (tag, words, kind) => { const e = document.createElement(tag); if (words) e.textContent = words; if (kind) e.className = kind; return e; };
const CELLS = 256, GONE = 0.06;
let about = await ask('about');
let n = 0, xy = new Float32Array(0), label = new Int32Array(0), row = new Uint32Array(0), place = new Map(), starts, order;
let view = { x: 0, y: 0, zoom: 1 }, only = new Set(), hovered = -1, chosen = -1, rings = [], mosaic = [], settled = 0, moving = 0, busy = null;
const thumbs = new Map(), pictured = about.kind === 'picture';

// ------------------------------------------------------------------------------------------------------------------ colours
let palette = [], soft = [128, 128, 128];
const dab = make('canvas').getContext('2d', { willReadFrequently: true });
const rgb = colour => { dab.fillStyle = colour; dab.fillRect(0, 0, 1, 1); return [...dab.getImageData(0, 0, 1, 1).data.slice(0, 3)]; };
const named = i => palette[i] ?? palette[7] ?? soft;
function readColours() {
  const style = getComputedStyle(document.documentElement), dark = matchMedia('(prefers-color-scheme: dark)').matches;
  palette = about.classes.map((_, i) => rgb(i < 10 ? style.getPropertyValue(`--c${i}`).trim() : `hsl(${i * 137.508 % 360} 50% ${dark ? 64 : 48}%)`));
  if (!palette.length) palette = [rgb(style.getPropertyValue('--c0').trim())];
  soft = rgb(style.getPropertyValue('--soft').trim());
}
const css = (c, alpha = 1) => `rgb(${c[0]} ${c[1]} ${c[2]} / ${alpha})`;
const shows = i => !only.size || only.has(label[i]);

// ------------------------------------------------------------------------------------------------------------------- points
const gl = points.getContext('webgl', { alpha: true, antialias: false, premultipliedAlpha: true });
let program, buffers;
function shader(kind, text) { const s = gl.createShader(kind); gl.shaderSource(s, text); gl.compileShader(s); return s; }
if (gl) {
  program = gl.createProgram();
  gl.attachShader(program, shader(gl.VERTEX_SHADER, `attribute vec2 p; attribute vec4 c; uniform vec2 centre, scale; uniform mediump float size; varying vec4 colour;
    void main() { gl_Position = vec4((p - centre) * scale, 0., 1.); gl_PointSize = size; colour = c; }`));
  gl.attachShader(program, shader(gl.FRAGMENT_SHADER, `precision mediump float; varying vec4 colour; uniform mediump float size;
    void main() { float d = length(gl_PointCoord - .5) * size; float a = colour.a * clamp(size * .5 - d, 0., 1.); gl_FragColor = vec4(colour.rgb * a, a); }`));
  gl.linkProgram(program); gl.useProgram(program);
  buffers = { p: gl.createBuffer(), c: gl.createBuffer() };
  gl.enable(gl.BLEND); gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
}
function upload(name, data, size, kind, unit) {
  if (!gl) return;
  gl.bindBuffer(gl.ARRAY_BUFFER, buffers[name]); gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
  const at = gl.getAttribLocation(program, name);
  gl.enableVertexAttribArray(at); gl.vertexAttribPointer(at, size, kind, unit, 0, 0);
}
function colour() {
  const c = new Uint8Array(4 * n), alpha = Math.round(255 * Math.max(0.35, Math.min(0.9, 40 / Math.sqrt(n || 1))));
  for (let i = 0; i < n; i++) {
    const k = label[i] < 0 ? palette[0] : named(label[i]), seen = shows(i);
    c[4 * i] = k[0]; c[4 * i + 1] = k[1]; c[4 * i + 2] = k[2]; c[4 * i + 3] = seen ? alpha : Math.round(255 * GONE);
  }
  upload('c', c, 4, gl && gl.UNSIGNED_BYTE, true);
}
const cell = v => Math.min(CELLS - 1, Math.max(0, Math.floor((v + 1) / 2 * CELLS)));
function sort() {                                        // points by cell: what is near the pointer is found at once
  starts = new Uint32Array(CELLS * CELLS + 1); order = new Uint32Array(n);
  for (let i = 0; i < n; i++) starts[cell(xy[2 * i + 1]) * CELLS + cell(xy[2 * i]) + 1]++;
  for (let i = 0; i < CELLS * CELLS; i++) starts[i + 1] += starts[i];
  const next = starts.slice();
  for (let i = 0; i < n; i++) order[next[cell(xy[2 * i + 1]) * CELLS + cell(xy[2 * i])]++] = i;
}
async function load() {
  const data = await ask('points'), old = new Map();
  if (n && n <= 200000) for (let i = 0; i < n; i++) old.set(row[i], [xy[2 * i], xy[2 * i + 1]]);
  n = new DataView(data).getUint32(0, true);
  const to = new Float32Array(data, 4, 2 * n);
  label = new Int32Array(data, 4 + 8 * n, n); row = new Uint32Array(data, 4 + 12 * n, n);
  place = new Map(); if (n <= 3e6) for (let i = 0; i < n; i++) place.set(row[i], i);
  xy = to; colour(); sort(); legend();
  if (!old.size) { upload('p', xy, 2, gl && gl.FLOAT, false); settle(); return; }
  const from = new Float32Array(2 * n), begun = performance.now();
  for (let i = 0; i < n; i++) { const at = old.get(row[i]) ?? [to[2 * i], to[2 * i + 1]]; from[2 * i] = at[0]; from[2 * i + 1] = at[1]; }
  const shown = new Float32Array(2 * n);
  const step = now => {
    const t = Math.min(1, (now - begun) / 700), e = t * t * (3 - 2 * t);
    for (let i = 0; i < 2 * n; i++) shown[i] = from[i] + e * (to[i] - from[i]);
    xy = t < 1 ? shown : to; upload('p', xy, 2, gl && gl.FLOAT, false); draw();
    if (t < 1) requestAnimationFrame(step); else settle();
  };
  requestAnimationFrame(step);
}

// ------------------------------------------------------------------------------------------------------------------ drawing
const size = () => ({ w: area.clientWidth, h: area.clientHeight });
const unit = () => { const { w, h } = size(); return Math.min(w, h) * 0.46 * view.zoom; };       // pixels of a length of 1
const onScreen = i => { const { w, h } = size(), u = unit(); return [w / 2 + (xy[2 * i] - view.x) * u, h / 2 - (xy[2 * i + 1] - view.y) * u]; };
const onMap = (x, y) => { const { w, h } = size(), u = unit(); return [(x - w / 2) / u + view.x, (h / 2 - y) / u + view.y]; };
const side = () => Math.max(30, Math.min(76, 30 * view.zoom ** 0.4));                             // of a picture on the map
const dot = () => Math.max(1.6, Math.min(13, 300 / Math.sqrt(n + 300) * Math.sqrt(view.zoom) * 0.6));
function thumb(i) {
  const r = row[i];
  if (!thumbs.has(r)) {
    if (thumbs.size > 3000) thumbs.clear();
    const image = new Image(); image.onload = () => draw(); image.src = `thumb/${r}?v=${about.stamp}`; thumbs.set(r, image);
  }
  return thumbs.get(r);
}
function draw() { if (!busy) busy = requestAnimationFrame(() => { busy = null; paint(); }); }
function paint() {
  const { w, h } = size(), ratio = devicePixelRatio || 1, u = unit();
  for (const canvas of [points, over]) if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio);
  }
  if (gl) {
    gl.viewport(0, 0, points.width, points.height); gl.clearColor(0, 0, 0, 0); gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(gl.getUniformLocation(program, 'centre'), view.x, view.y);
    gl.uniform2f(gl.getUniformLocation(program, 'scale'), 2 * u / w, 2 * u / h);
    gl.uniform1f(gl.getUniformLocation(program, 'size'), dot() * ratio);
    if (n) gl.drawArrays(gl.POINTS, 0, n);
  }
  brush.setTransform(ratio, 0, 0, ratio, 0, 0); brush.clearRect(0, 0, w, h);
  if (!gl) for (let i = 0; i < Math.min(n, 50000); i++) { const [x, y] = onScreen(i), d = dot(); brush.fillStyle = css(named(label[i]), shows(i) ? 0.7 : GONE); brush.fillRect(x - d / 2, y - d / 2, d, d); }
  for (const i of mosaic) picture(i, side(), !shows(i) ? 0.12 : rings.length ? 0.2 : 1, css(label[i] < 0 ? soft : named(label[i])));
  const accent = getComputedStyle(document.documentElement).getPropertyValue('--accent').trim();
  rings.forEach((r, k) => {
    const i = place.get(r); if (i === undefined) return;
    if (pictured) picture(i, k < 12 ? 40 : 30, 1, accent, 2.5); else ring(i, 7, accent, 2);
  });
  if (chosen >= 0) { if (pictured) picture(chosen, 52, 1, accent, 4); else ring(chosen, 10, accent, 4); }
  if (hovered >= 0) ring(hovered, pictured && (mosaic.includes(hovered) || rings.includes(row[hovered])) ? 25 : 8, accent, 2);
}
function ring(i, r, colour, width) {
  const [x, y] = onScreen(i);
  brush.beginPath(); brush.arc(x, y, r, 0, 7); brush.strokeStyle = colour; brush.lineWidth = width; brush.stroke();
}
function picture(i, side, alpha, colour, width = 1.5) {
  const [x, y] = onScreen(i), { w, h } = size(), image = thumb(i);
  if (x < -side || y < -side || x > w + side || y > h + side || !image.complete || !image.naturalWidth) return;
  const k = side / Math.max(image.naturalWidth, image.naturalHeight), a = image.naturalWidth * k, b = image.naturalHeight * k;
  brush.globalAlpha = alpha; brush.drawImage(image, x - a / 2, y - b / 2, a, b);
  brush.strokeStyle = colour; brush.lineWidth = width; brush.strokeRect(x - a / 2, y - b / 2, a, b); brush.globalAlpha = 1;
}
function settle() {                                      // which pictures there is room for, once the map stands still
  clearTimeout(settled); draw();
  settled = setTimeout(() => {
    const { w, h } = size(), gap = side() + 5, taken = new Map(); mosaic = [];
    if (pictured && $('mosaic').checked) for (let k = 0; k < n && mosaic.length < 700; k++) {
      const [x, y] = onScreen(k), a = Math.floor(x / gap), b = Math.floor(y / gap);
      if (x < 0 || y < 0 || x > w || y > h || !shows(k)) continue;
      let free = true;
      for (let v = b - 1; v <= b + 1 && free; v++) for (let u = a - 1; u <= a + 1 && free; u++) {
        const other = taken.get(v * 4096 + u);
        if (other && Math.abs(other[0] - x) < gap && Math.abs(other[1] - y) < gap) free = false;
      }
      if (free) { taken.set(b * 4096 + a, [x, y]); mosaic.push(k); }
    }
    draw();
  }, 160);
}
function nearest(x, y, reach) {
  if (!n) return -1;
  const [a, b] = onMap(x, y), r = reach / unit(), d = Math.min(24, Math.ceil(r / 2 * CELLS)), cx = cell(a), cy = cell(b);
  let best = -1, least = r * r;
  for (let v = Math.max(0, cy - d); v <= Math.min(CELLS - 1, cy + d); v++) for (let u = Math.max(0, cx - d); u <= Math.min(CELLS - 1, cx + d); u++)
    for (let k = starts[v * CELLS + u]; k < starts[v * CELLS + u + 1]; k++) {
      const i = order[k], far = (xy[2 * i] - a) ** 2 + (xy[2 * i + 1] - b) ** 2;
      if (far < least && shows(i)) { least = far; best = i; }
    }
  return best;
}

// ----------------------------------------------------------------------------------------------------------------- the side
function image(where, r) { const e = make('img'); e.alt = ''; e.src = `${where}/${r}?v=${about.stamp}`; e.onload = () => { if (Math.max(e.naturalWidth, e.naturalHeight) < 97) e.className = 'small'; }; return e; }
function list(title, found) {
  $('title').textContent = title; $('notes').replaceChildren(...found.notes.map(note => make('li', note)));
  $('hits').className = pictured ? '' : 'text';
  $('hits').replaceChildren(...found.hits.map(hit => {
    const e = make('button'); e.title = [hit.name, hit.text, hit.label].filter(Boolean).join('\n');
    if (pictured) e.append(image('thumb', hit.row));
    e.append(make('span', hit.text || hit.name), make('small', `${hit.score.toFixed(3)}${hit.label ? ' · ' + hit.label : ''}`));
    e.onclick = () => choose(hit.row, true);
    e.onpointerenter = () => { hovered = place.get(hit.row) ?? -1; draw(); };
    e.onpointerleave = () => { hovered = -1; draw(); };
    return e;
  }));
  rings = found.hits.map(hit => hit.row); draw();
}
function failed(error) { if (error.name !== 'AbortError') { $('title').textContent = ''; $('hits').replaceChildren(); $('notes').replaceChildren(make('li', error.message)); } }
let last = new AbortController();
async function choose(r, go) {
  last.abort(); last = new AbortController();
  try {
    const [item, found] = await Promise.all([ask(`item?row=${r}`, last.signal), ask(`like?row=${r}&top=60`, last.signal)]);
    chosen = place.get(r) ?? -1;
    $('chosen').replaceChildren(...(pictured ? [image('picture', r)] : []), make('p', item.text), make('small', [item.name, item.label, 'row ' + r].filter(Boolean).join(' · ')));
    list('Nearest to it', found); $('side').scrollTop = 0;
    if (go && chosen >= 0) fly(xy[2 * chosen], xy[2 * chosen + 1], Math.max(view.zoom, 1));
  } catch (error) { failed(error); }
}
let typing = 0;
$('query').addEventListener('input', () => { clearTimeout(typing); typing = setTimeout(find, 180); });
$('query').addEventListener('keydown', event => { if (event.key === 'Enter') { clearTimeout(typing); find(); } });
async function find() {
  const words = $('query').value.trim();
  last.abort(); last = new AbortController();
  history.replaceState(null, '', words ? '#' + encodeURIComponent(words) : location.pathname);
  if (!words) { rings = []; $('title').textContent = ''; $('hits').replaceChildren(); $('notes').replaceChildren(); welcome(); draw(); return; }
  try {
    const found = await ask(`search?top=60&q=${encodeURIComponent(words)}`, last.signal);
    chosen = -1; $('chosen').replaceChildren(); list(`“${words}”`, found);
  } catch (error) { failed(error); }
}
function welcome() {
  if (chosen >= 0 || rings.length) return;
  $('title').textContent = n ? 'Click on the map' : 'The index is empty'; $('chosen').replaceChildren();
  $('notes').replaceChildren(...(about.no_words ? [make('li', about.no_words)] : []));
}
function legend() {
  const sorted = about.classes.map((c, i) => [c, i]).filter(([c]) => c.count).sort((a, b) => b[0].count - a[0].count).slice(0, 60);
  $('legend').replaceChildren(...sorted.map(([c, i]) => {
    const e = make('button', '', only.size && !only.has(i) ? 'off' : ''), spot = make('i');
    spot.style.background = css(named(i)); e.append(spot, make('span', c.name), make('small', c.count.toLocaleString('en')));
    e.setAttribute('aria-pressed', only.has(i));
    e.onclick = () => { only.has(i) ? only.delete(i) : only.add(i); colour(); legend(); settle(); };
    return e;
  }));
}

// ------------------------------------------------------------------------------------------------------------------- moving
function zoom(factor, x, y) {
  const [a, b] = onMap(x, y); view.zoom = Math.max(0.6, Math.min(4000, view.zoom * factor));
  const [c, d] = onMap(x, y); view.x += a - c; view.y += b - d; mosaic = mosaic.slice(0, 700); settle();
}
function fly(x, y, to) {
  const from = { ...view }, begun = performance.now(); cancelAnimationFrame(moving);
  const step = now => { const t = Math.min(1, (now - begun) / 350), e = t * t * (3 - 2 * t);
    view = { x: from.x + e * (x - from.x), y: from.y + e * (y - from.y), zoom: from.zoom * (to / from.zoom) ** e }; draw();
    if (t < 1) moving = requestAnimationFrame(step); else settle(); };
  moving = requestAnimationFrame(step);
}
const held = new Map(); let dragged = 0, apart = 0;
over.addEventListener('pointerdown', event => { over.setPointerCapture(event.pointerId); held.set(event.pointerId, event); dragged = 0; apart = 0; over.classList.add('held'); });
over.addEventListener('pointermove', event => {
  const box = over.getBoundingClientRect(), before = held.get(event.pointerId);
  if (before) {
    const others = [...held.values()].filter(e => e.pointerId !== event.pointerId);
    if (others.length) {
      const now = Math.hypot(event.clientX - others[0].clientX, event.clientY - others[0].clientY);
      if (apart) zoom(now / apart, (event.clientX + others[0].clientX) / 2 - box.left, (event.clientY + others[0].clientY) / 2 - box.top);
      apart = now;
    } else { view.x -= (event.clientX - before.clientX) / unit(); view.y += (event.clientY - before.clientY) / unit(); }
    dragged += Math.abs(event.clientX - before.clientX) + Math.abs(event.clientY - before.clientY);
    held.set(event.pointerId, event); settle(); return;
  }
  const x = event.clientX - box.left, y = event.clientY - box.top, i = nearest(x, y, 16);
  over.classList.toggle('near', i >= 0);
  if (i !== hovered) { hovered = i; draw(); hint(i); }
  if (i >= 0) { tip.style.left = Math.min(x + 16, box.width - tip.offsetWidth - 8) + 'px'; tip.style.top = Math.max(8, Math.min(y + 16, box.height - tip.offsetHeight - 8)) + 'px'; }
});
const release = event => { held.delete(event.pointerId); apart = 0; if (!held.size) over.classList.remove('held'); };
over.addEventListener('pointerup', event => {
  const alone = held.size === 1; release(event);
  if (!alone || dragged > 6) return;
  const box = over.getBoundingClientRect(), i = nearest(event.clientX - box.left, event.clientY - box.top, 22);
  if (i >= 0) choose(row[i], false); else { chosen = -1; rings = []; $('hits').replaceChildren(); $('notes').replaceChildren(); welcome(); draw(); }
});
over.addEventListener('pointercancel', release);
over.addEventListener('pointerleave', () => { if (!held.size) { hovered = -1; tip.style.display = 'none'; draw(); } });
over.addEventListener('wheel', event => { event.preventDefault(); const box = over.getBoundingClientRect(); zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), event.clientX - box.left, event.clientY - box.top); }, { passive: false });
over.addEventListener('keydown', event => {
  const step = 60 / unit(), { w, h } = size(), moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  if (moves[event.key]) { view.x += moves[event.key][0] * step; view.y += moves[event.key][1] * step; settle(); event.preventDefault(); }
  if (event.key === '+' || event.key === '=') zoom(1.4, w / 2, h / 2);
  if (event.key === '-') zoom(1 / 1.4, w / 2, h / 2);
  if (event.key === '0') fly(0, 0, 1);
});
let hinted = 0;
async function hint(i) {
  const mine = ++hinted;
  if (i < 0) { tip.style.display = 'none'; return; }
  try {
    const item = await ask(`item?row=${row[i]}`);
    if (mine !== hinted) return;
    tip.replaceChildren(...(pictured ? [image('thumb', row[i])] : []), make('div', (item.text || item.name).slice(0, 160)), make('small', item.label)); tip.style.display = 'block';
  } catch (error) { tip.style.display = 'none'; }
}
$('in').onclick = () => { const { w, h } = size(); zoom(1.6, w / 2, h / 2); };
$('out').onclick = () => { const { w, h } = size(); zoom(1 / 1.6, w / 2, h / 2); };
$('whole').onclick = () => fly(0, 0, 1);
$('mosaic').onchange = settle;
$('mosaic-label').hidden = !pictured;
new ResizeObserver(settle).observe(area);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { readColours(); colour(); legend(); draw(); });

// ------------------------------------------------------------------------------------------------------------------ to begin
document.title = `${about.name} · notan`;
$('name').textContent = about.name;
$('facts').textContent = `${about.rows.toLocaleString('en')} ${about.kind === 'picture' ? 'pictures' : about.kind === 'text' ? 'texts' : 'rows'} · ${about.model}`;
if (about.no_words) { $('query').disabled = true; $('query').placeholder = 'No search in words here'; }
readColours(); await load(); welcome();
if (location.hash.length > 1 && !about.no_words) { try { $('query').value = decodeURIComponent(location.hash.slice(1)); find(); } catch (error) { /* a broken address asks nothing */ } }
const say = () => { $('status').textContent = about.busy ? 'two directions of most spread; a map that keeps neighbours together is being made …' : about.map === 'spread' ? 'two directions of most spread' : ''; };
say();
while (about.busy) {
  await new Promise(done => setTimeout(done, 1500));
  const before = about.map; about = await ask('about'); say();
  if (about.map !== before) await load();
}
})();
