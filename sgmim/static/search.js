// The page of sgmim_app. Everything comes from this server; nothing is loaded from elsewhere, and nothing is stored.
'use strict';
const $ = id => document.getElementById(id);
const KNOWN = { wav: 'audio/wav', flac: 'audio/flac', ogg: 'audio/ogg', mp3: 'audio/mpeg' };
const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37]];
let about = {}, answer = null, sound = null, chosen = { hit: null, part: 0 }, maps = null, recorder = null, playing = null, asked = 0;

function say(text, bad = false) { $('status').textContent = text; $('status').classList.toggle('bad', bad); }

async function get(path, options) {
  let reply;
  try { reply = await fetch(path, options); }
  catch (e) { throw new Error('The server does not answer. Is sgmim_app still running?'); }
  const body = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(body.error || `The server answered ${reply.status}.`);
  return body;
}

// --- sound

const audio = () => audio.context ||= new AudioContext();

async function toMono16k(bytes) {
  const decoded = await audio().decodeAudioData(bytes);
  const n = Math.max(1, Math.ceil(Math.min(decoded.duration, about.max_seconds) * 16000));
  const offline = new OfflineAudioContext(1, n, 16000);
  const source = offline.createBufferSource();
  source.buffer = decoded; source.connect(offline.destination); source.start();
  return offline.startRendering();
}

function toWav(buffer) {
  const x = buffer.getChannelData(0), out = new DataView(new ArrayBuffer(44 + 2 * x.length));
  const text = (at, s) => [...s].forEach((c, i) => out.setUint8(at + i, c.charCodeAt(0)));
  text(0, 'RIFF'); out.setUint32(4, 36 + 2 * x.length, true); text(8, 'WAVEfmt '); out.setUint32(16, 16, true);
  out.setUint16(20, 1, true); out.setUint16(22, 1, true); out.setUint32(24, 16000, true); out.setUint32(28, 32000, true);
  out.setUint16(32, 2, true); out.setUint16(34, 16, true); text(36, 'data'); out.setUint32(40, 2 * x.length, true);
  x.forEach((v, i) => out.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, v)) * 32767, true));
  return new Blob([out], { type: 'audio/wav' });
}

function play(start = 0, end = Infinity) {
  if (!sound) return;
  if (playing) playing.stop();
  playing = audio().createBufferSource();
  playing.buffer = sound; playing.connect(audio().destination);
  playing.start(0, start, Math.min(end, sound.duration) - start);
}

// --- asking

async function ask(send, bytes) {
  const mine = ++asked;
  say('Searching …');
  try {
    const found = await send();
    if (mine !== asked) return;                     // something else was asked meanwhile
    const from = found.sound ? Uint8Array.from(atob(found.sound), c => c.charCodeAt(0)).buffer : bytes;
    sound = from ? await toMono16k(from.slice(0)).catch(() => null) : null;
    show(found);
  } catch (e) { if (mine === asked) say(e.message, true); }
}

const post = (blob, type) => () => get('search', { method: 'POST', headers: { 'Content-Type': type }, body: blob });

async function record() {
  if (recorder) { recorder.stop(); return; }
  let stream;
  try { stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } }); }
  catch (e) { say('The microphone is not available (' + e.message + '). Allow it for this page, upload a recording, or type.', true); return; }
  const pieces = [], began = performance.now(), meter = audio().createAnalyser();
  audio().createMediaStreamSource(stream).connect(meter);
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = e => pieces.push(e.data);
  recorder.onstop = async () => {
    stream.getTracks().forEach(t => t.stop());
    recorder = null;
    $('record').setAttribute('aria-pressed', 'false'); $('record-text').textContent = 'Record';
    try {
      const wav = toWav(await toMono16k(await new Blob(pieces).arrayBuffer()));
      ask(post(wav, 'audio/wav'), await wav.arrayBuffer());
    } catch (e) { say('The recording could not be read; it may be too short. Record again.', true); }
  };
  recorder.start();
  $('record').setAttribute('aria-pressed', 'true');
  say('Listening. Press again to stop.');
  const level = new Float32Array(meter.fftSize), bar = $('level').getContext('2d');
  (function tick() {
    const seconds = (performance.now() - began) / 1000;
    bar.clearRect(0, 0, 120, 10);
    if (!recorder) return;
    meter.getFloatTimeDomainData(level);
    bar.fillStyle = '#009E73'; bar.fillRect(0, 0, 120 * Math.min(1, 3 * Math.max(...level.map(Math.abs))), 10);
    $('record-text').textContent = `Stop (${seconds.toFixed(0)} of ${about.max_seconds.toFixed(0)} s)`;
    if (seconds > about.max_seconds) recorder.stop(); else requestAnimationFrame(tick);
  })();
}

async function upload(file) {
  if (!file) return;
  if (file.size > about.max_bytes) { say(`${file.name} has ${(file.size / 2 ** 20).toFixed(0)} MiB; at most ${about.max_bytes / 2 ** 20} MiB can be sent. Cut out the sentence, or save it as flac or mp3.`, true); return; }
  const bytes = await file.arrayBuffer(), type = KNOWN[file.name.split('.').pop().toLowerCase()];
  if (type) { ask(post(bytes, type), bytes); return; }
  try { const wav = toWav(await toMono16k(bytes.slice(0))); ask(post(wav, 'audio/wav'), await wav.arrayBuffer()); }      // what the browser can decode and the server cannot
  catch (e) { say(`${file.name} is no sound that this browser can read. Send wav, flac, mp3 or ogg.`, true); }
}

// --- what came back

function show(found) {
  answer = found; maps = null; chosen = { hit: null, part: 0 };
  $('query').hidden = $('found').hidden = false;
  const cut = found.seconds > found.heard + .05 ? ` (the first ${found.heard.toFixed(1)} of ${found.seconds.toFixed(1)} s)` : '';
  say(`${found.hits.length} of ${about.items.toLocaleString()} pictures for ${found.said ? '“' + found.said + '”' : 'your recording'}${cut}, in ${found.took.toFixed(2)} s.`);
  drawWave();
  const words = found.parts.some(p => p.word);
  $('parts-note').textContent = (words ? 'Press a word to hear it and to see where it points.' : 'The parts are cut half-way between what [CLS] attends to. Press one to hear it and to see where it points.') + ' Lines: the attention of each head.';
  $('parts').replaceChildren(...found.parts.map((p, i) => {
    const b = document.createElement('button'), name = p.word || String(i + 1);
    b.type = 'button'; b.textContent = name; b.title = `${name}: ${p.start.toFixed(2)} to ${p.end.toFixed(2)} s`;
    b.setAttribute('aria-label', p.word ? `the word ${p.word}` : `part ${i + 1}, ${p.start.toFixed(1)} to ${p.end.toFixed(1)} seconds`);
    b.style.left = 100 * p.start / found.heard + '%'; b.style.width = `calc(${100 * (p.end - p.start) / found.heard}% - 3px)`;
    b.onclick = () => { chosen.part = i; play(p.start, p.end); mark(); point(); };
    return b;
  }));
  $('results').replaceChildren(...found.hits.map(h => {
    const item = document.createElement('li'), b = document.createElement('button'), img = new Image(), name = document.createElement('span'), score = document.createElement('span');
    b.type = 'button'; b.dataset.row = h.row; img.src = `image/${h.row}`; img.alt = `picture ${h.rank}, ${h.name}`; img.loading = 'lazy'; img.width = img.height = 160;
    name.className = 'name'; name.textContent = h.name; name.title = h.name; score.className = 'score'; score.textContent = `${h.rank}. ${h.score.toFixed(3)}`;
    b.append(img, score, name); item.append(b);
    b.onclick = () => choose(h);
    return item;
  }));
  const first = kinds => found.parts.findIndex(p => kinds.includes(p.kind));       // the word that has most to say
  chosen.part = Math.max(0, first(['thing']) >= 0 ? first(['thing']) : first(['colour', 'size', 'place']));
  if (found.hits.length) choose(found.hits[0]);
  $('query').scrollIntoView({ block: 'nearest' });
}

function mark() {
  [...$('parts').children].forEach((b, i) => b.setAttribute('aria-pressed', i === chosen.part));
  for (const b of $('results').querySelectorAll('button')) b.setAttribute('aria-pressed', chosen.hit && +b.dataset.row === chosen.hit.row);
}

async function choose(hit) {
  chosen.hit = hit; maps = null;
  $('large').src = `image/${hit.row}`; $('large').alt = `picture ${hit.rank}, ${hit.name}`;
  $('caption').textContent = `${hit.rank}. ${hit.name}, similarity ${hit.score.toFixed(3)}`;
  $('pointing').textContent = answer.parts.length ? 'Looking …' : '';
  mark(); point();
  if (!answer.parts.length) return;
  const query = answer.query;
  try {
    const found = await get(`map?query=${query}&row=${hit.row}`);
    if (chosen.hit === hit && answer.query === query) { maps = found; point(); }
  } catch (e) { if (chosen.hit === hit) $('pointing').textContent = e.message; }
}

function colour(t) {
  const x = Math.max(0, Math.min(1, t)) * (VIRIDIS.length - 1), i = Math.min(Math.floor(x), VIRIDIS.length - 2);
  return VIRIDIS[i].map((a, c) => Math.round(a + (x - i) * (VIRIDIS[i + 1][c] - a)));
}

function point() {
  const ctx = $('heat').getContext('2d'), side = 320;
  ctx.clearRect(0, 0, side, side);
  $('scale').hidden = !maps;
  if (!maps) return;
  const { grid, values, low, high } = maps, map = values[chosen.part], cell = document.createElement('canvas');
  cell.width = cell.height = grid;
  const pixels = new ImageData(grid, grid);
  map.forEach((v, i) => pixels.data.set([...colour((v - low) / (high - low || 1)), 165], 4 * i));
  cell.getContext('2d').putImageData(pixels, 0, 0);
  const best = map.indexOf(Math.max(...map)), x = best % grid, y = Math.floor(best / grid), part = answer.parts[chosen.part];
  if ($('show').checked) {
    ctx.imageSmoothingEnabled = true; ctx.imageSmoothingQuality = 'high';
    ctx.drawImage(cell, 0, 0, side, side);
    ctx.lineWidth = 3; ctx.strokeStyle = '#fff'; ctx.shadowColor = '#000'; ctx.shadowBlur = 4;
    ctx.beginPath(); ctx.arc((x + .5) * side / grid, (y + .5) * side / grid, 12, 0, 7); ctx.stroke(); ctx.shadowBlur = 0;
  }
  const where = (v, names) => names[v < grid / 3 ? 0 : v < 2 * grid / 3 ? 1 : 2];
  const place = [where(y, ['top', 'middle', 'bottom']), where(x, ['left', 'centre', 'right'])].join(' ').replace('middle centre', 'centre');
  $('pointing').textContent = `${part.word ? '“' + part.word + '”' : 'Part ' + (chosen.part + 1)} points most to the ${place}.`;
}

function drawWave() {
  const canvas = $('wave'), c = canvas.getContext('2d'), W = canvas.width, H = canvas.height, mid = 50;
  const ink = getComputedStyle(document.body).color, { first, hop, heads } = answer.attention, x = t => W * t / answer.heard;
  c.clearRect(0, 0, W, H);
  c.fillStyle = ink; c.globalAlpha = .55;
  answer.envelope.forEach((v, i) => c.fillRect(i * W / answer.envelope.length, mid - 46 * v, Math.max(1, W / answer.envelope.length - 1), Math.max(1, 92 * v)));
  c.globalAlpha = 1; c.lineWidth = 2.5;
  heads.forEach((head, k) => {
    c.strokeStyle = about.colours[k]; c.beginPath();
    head.forEach((v, t) => c.lineTo(x(first + hop * t), H - 4 - 78 * v));
    c.stroke();
  });
  c.globalAlpha = .35; c.fillStyle = ink;
  for (const p of answer.parts.slice(1)) c.fillRect(x(p.start) - 1, 0, 2, H);
  c.globalAlpha = 1;
}

// --- the page

get('about').then(found => {
  about = found;
  $('about').textContent = `${about.items.toLocaleString()} pictures, compared with what you say by ${about.checkpoint}. Sound goes to this computer only; the first ${about.max_seconds.toFixed(0)} seconds are used.${about.people}`;
  if (!about.voice) $('say').hidden = true;
  if (!navigator.mediaDevices || !window.MediaRecorder) { $('record').disabled = true; $('record').title = 'This browser gives no microphone to this page'; }
  document.body.dataset.ready = 'yes';
}).catch(e => say(e.message, true));
$('record').onclick = record;
$('file').onchange = e => { upload(e.target.files[0]); e.target.value = ''; };
$('say').onsubmit = e => { e.preventDefault(); ask(() => get('say', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ text: $('text').value }) })); };
$('play').onclick = () => play();
$('show').onchange = point;
const bar = $('legend').getContext('2d');
for (let i = 0; i < 120; i++) { bar.fillStyle = `rgb(${colour(i / 119)})`; bar.fillRect(i, 0, 1, 10); }
