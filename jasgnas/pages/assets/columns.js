// Folded graphs are high and narrow, and screens are wide: what stands below each other is set in columns, as the lines
// of a newspaper are. Pure functions of data, as the drawing itself.
"use strict";

const READABLE = 0.7; // below this scale texts are tiring to read
const LARGEST = 1.25; // scale of graphs that are small
const HEAD = 26; // above and below a column, in the drawing's own px
const TURN = 12; // distance from a column at which the edges turn that go on in the next one
const LANES = 10; // room for them beside each other

/**
 * Fills columns with ranks so that all of them are seen at once, at the largest scale.
 *
 * @param ranks what stands below each other, `{top, bottom, boxes}`.
 * @param width of a column.
 * @param room `{width, height}` of the window.
 * @return the columns, each as a rank is, or null where texts would be too small.
 */
function columnsThatFit(ranks, width, room) {
  let [best, largest] = [null, 0];
  for (let count = 1; count * width * READABLE <= room.width; count += 1) {
    const columns = evenColumns(ranks, count);
    const scale = Math.min(LARGEST, room.width / (columns.length * width), room.height / heightOf(columns));
    if (scale >= READABLE && scale > largest) [best, largest] = [columns, scale];
  }
  return best;
}

/** Fills so many columns at most, the highest of which is as low as can be. */
function evenColumns(ranks, count) {
  let [low, high] = [0, ranks.at(-1).bottom - ranks[0].top];
  while (high - low > 1) {
    const middle = (low + high) / 2;
    if (rowsOf(ranks, middle).length <= count) high = middle;
    else low = middle;
  }
  return rowsOf(ranks, high);
}

function heightOf(columns) {
  return Math.ceil(Math.max(...columns.map(({ top, bottom }) => bottom - top))) + 2 * HEAD;
}

/** Moves what is laid out in one column to several, if all of it can be read at once then. */
function inColumns(plan, scene, room) {
  const columns = columnsThatFit(ranksOf(boxesOf(plan, scene)), scene.width, room);
  if (columns === null || columns.length === 1) return scene;
  const cuts = columns.slice(1).map(({ top }, i) => (columns[i].bottom + top) / 2);
  const move = ([x, y], column) => [round(x + column * scene.width), round(y - columns[column].top + HEAD)];
  const moved = (place) => {
    const [x, y] = move([place.x, place.y], columnAt(place.y, cuts));
    return { ...place, x, y };
  };
  const paths = scene.paths.map((path) => piecesOf(path, cuts));
  cuts.forEach((_, i) => setLanes(paths.flat().filter(({ cut }) => cut === i)));

  /** Returns the way of an edge from one column to the other: below the left one, and above the right one. */
  const way = (before, after) => {
    const column = after.cut;
    const [[x, end], [next, start]] = [column, column + 1].map((each) => move(after.points[0], each));
    const step = LANES / after.lanes;
    const low = columns[column].bottom - columns[column].top + HEAD + TURN + step * after.lane;
    const gutter = (column + 1) * scene.width + step * (after.lane - (after.lanes - 1) / 2);
    const high = HEAD - TURN - step * (after.lanes - 1 - after.lane);
    const corners = [[x, end], [x, low], [gutter, low], [gutter, high], [next, high], [next, start]];
    return `L${pathText(before.column === column ? corners : corners.reverse())}`;
  };
  const pathOf = (pieces) => pieces.map((piece, i) => {
    const [start, ...rest] = piece.points.map((point) => move(point, piece.column));
    return `${i === 0 ? `M${start}` : way(pieces[i - 1], piece)}C${pathText(rest)}`;
  }).join("");
  return {
    width: columns.length * scene.width,
    height: heightOf(columns),
    places: Object.fromEntries(Object.entries(scene.places).map(([i, place]) => [i, moved(place)])),
    terminals: scene.terminals.map(moved),
    paths: paths.map(pathOf),
  };
}

function pathText(points) {
  return points.map((point) => point.map(round).join(",")).join(" ");
}

function columnAt(y, cuts) {
  return cuts.filter((cut) => cut < y).length;
}

/**
 * Cuts a path where it leaves a column.
 *
 * @return pieces `{column, points, cut}`, each of which begins where the one before it ends, at one of the cuts.
 */
function piecesOf(path, cuts) {
  if (path === "") return [];
  const points = path.slice(1).split(/[C ]/).map((point) => point.split(",").map(Number));
  const pieces = [];
  for (let i = 0; i + 3 < points.length; i += 3) {
    for (const curve of cutCurve(points.slice(i, i + 4), cuts)) {
      const column = columnAt((curve[0][1] + curve[3][1]) / 2, cuts);
      const before = pieces.at(-1);
      if (before?.column === column) before.points.push(...curve.slice(1));
      else pieces.push({ column, points: curve, cut: before && Math.min(column, before.column) });
    }
  }
  return pieces;
}

/** Cuts a cubic curve at heights, each of which it passes once at most, as those of Graphviz do. */
function cutCurve(curve, [cut, ...others]) {
  if (cut === undefined) return [curve];
  const isAbove = ([, y]) => y < cut;
  if (isAbove(curve[0]) === isAbove(curve[3])) return cutCurve(curve, others);
  let [low, high] = [0, 1];
  while (high - low > 1e-4) {
    const middle = (low + high) / 2;
    if (isAbove(halves(curve, middle)[1][0]) === isAbove(curve[0])) low = middle;
    else high = middle;
  }
  return halves(curve, high).flatMap((half) => cutCurve(half, others));
}

/** Returns the two parts of a cubic curve, by de Casteljau's rule. */
function halves([a, b, c, d], t) {
  const mix = (p, q) => p.map((value, i) => value + (q[i] - value) * t);
  const [ab, bc, cd] = [mix(a, b), mix(b, c), mix(c, d)];
  const [abc, bcd] = [mix(ab, bc), mix(bc, cd)];
  const middle = mix(abc, bcd);
  return [[a, ab, abc, middle], [middle, bcd, cd, d]];
}

/** Gives pieces that begin at the same cut lanes in which they do not cross each other: the rightmost turns first. */
function setLanes(pieces) {
  pieces.sort((a, b) => b.points[0][0] - a.points[0][0]).forEach((piece, lane) => Object.assign(piece, { lane, lanes: pieces.length }));
}
