(() => {
  const fade = (all, chosen) => all.forEach(x => x.classList.toggle('faded', chosen !== null && !chosen(x)));
  document.querySelectorAll('.legend li').forEach(li => {
    const parts = li.dataset.class !== undefined
      ? [[...document.querySelectorAll('.map path')], p => p.classList.contains('k' + li.dataset.class)]
      : [[...li.closest('figure').querySelectorAll('.line')], g => g.dataset.series === li.dataset.series];
    li.addEventListener('pointerenter', () => fade(...parts));
    li.addEventListener('pointerleave', () => fade(parts[0], null));
  });
  const tip = document.getElementById('tip'), sheet = document.getElementById('thumbs');
  if (!tip) return;
  const names = JSON.parse(tip.dataset.names), cell = +tip.dataset.cell, columns = +tip.dataset.columns, zoom = Math.max(1, Math.round(84 / cell));
  document.querySelectorAll('svg.map').forEach(svg => {
    const points = svg.dataset.points.split(' ').map(p => p.split(',').map(Number)), size = svg.viewBox.baseVal.width;
    svg.addEventListener('pointermove', event => {
      const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * size / box.width, y = (event.clientY - box.top) * size / box.height;
      let best = -1, near = 80;
      points.forEach((p, i) => { const d = (p[0] - x) ** 2 + (p[1] - y) ** 2; if (d < near) { near = d; best = i; } });
      tip.style.display = best < 0 ? 'none' : 'block';
      if (best < 0) return;
      tip.textContent = '';
      if (sheet && best < +tip.dataset.count) {
        const view = document.createElement('div');
        Object.assign(view.style, { width: cell * zoom + 'px', height: cell * zoom + 'px', backgroundImage: `url(${sheet.src})`,
          backgroundSize: columns * cell * zoom + 'px auto',
          backgroundPosition: `-${best % columns * cell * zoom}px -${Math.floor(best / columns) * cell * zoom}px` });
        tip.append(view);
      }
      tip.append(names[points[best][2]] ?? 'class ' + points[best][2]);
      tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + 'px';
      tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + 'px';
    });
    svg.addEventListener('pointerleave', () => tip.style.display = 'none');
  });
})();
