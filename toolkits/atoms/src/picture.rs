//! Pictures of structures: atoms as shaded spheres, the cell as lines.

use fauna_shared::item::{Atoms, Image};
use fauna_shared::{Error, Result};

use crate::cell;
use crate::check;
use crate::elements::covalent_radius;

/// Options of [`draw`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureOptions {
    /// Height and width in pixels, from 16 to 4096.
    pub size: usize,
    /// Rotation of the camera around the vertical axis, then its elevation above the horizontal plane, in degrees.
    pub view: [f64; 2],
    /// Radius of a sphere, as a multiple of the covalent radius: above 0.
    pub radius: f64,
}

impl Default for PictureOptions {
    fn default() -> Self {
        Self { size: 640, view: [-62.0, 18.0], radius: 0.7 }
    }
}

/// Largest number of spheres: a picture of more would show none of them.
const MOST_SPHERES: usize = 200_000;
/// Space around the structure, as a share of the picture.
const MARGIN: f64 = 0.06;
/// Samples of a pixel along each axis.
const FINER: usize = 2;
/// Direction of the light, in the frame of the camera: right, up, towards the camera.
const LIGHT: [f64; 3] = [-0.42, 0.56, 0.71];
/// Atoms this close to a face of the cell, in fractions of it, are drawn beside the opposite one too.
const FACE: f64 = 0.05;
const EDGE: [u8; 3] = [120, 124, 134];

/// A point in the frame of the camera: right, up, towards the camera, in Å.
type Point = [f64; 3];

struct Sphere {
    centre: Point,
    radius: f64,
    colour: [u8; 3],
}

/// Draws `atoms` as seen from a distance, on white. Atoms on a face, an edge or a corner of a periodic cell are drawn on
/// all of them, as crystallographers do.
///
/// ```
/// use fauna_atoms::picture::{PictureOptions, draw};
/// use fauna_shared::item::Atoms;
/// let positions = vec![[0.0, 0.0, 0.0], [1.4, 1.4, 1.4]];
/// let cell = Some([[2.8, 0.0, 0.0], [0.0, 2.8, 0.0], [0.0, 0.0, 2.8]]);
/// let iron = Atoms { numbers: vec![26; 2], positions, cell, periodic: [true; 3], ..Atoms::default() };
/// let picture = draw(&iron, &PictureOptions::default())?;
/// assert_eq!((picture.width, picture.height), (640, 640));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for an option out of range, and for atoms that [`check`] refuses or that are
/// more than 200 000.
pub fn draw(atoms: &Atoms, options: &PictureOptions) -> Result<Image> {
    check(atoms)?;
    if !(16..=4096).contains(&options.size) {
        return Err(Error::input(format!(
            "the size of a picture is 16 to 4096 pixels, got {}",
            options.size
        )));
    }
    if !(options.radius > 0.0 && options.radius.is_finite())
        || options.view.iter().any(|angle| !angle.is_finite())
    {
        return Err(Error::input("the radius of the spheres must be above 0, and the view finite"));
    }
    let camera = Camera::new(options.view);
    let spheres = spheres(atoms, &camera, options.radius)?;
    let corners = corners(atoms).map(|corner| camera.see(corner));
    let ends = spheres
        .iter()
        .flat_map(|s| [-1.0, 1.0].map(|side| [s.centre[0] + side * s.radius, s.centre[1] + side * s.radius]));
    let ends: Vec<[f64; 2]> = ends.chain(corners.iter().map(|corner| [corner[0], corner[1]])).collect();
    let range = |axis: usize| {
        let values = ends.iter().map(|end| end[axis]);
        values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (x, y) = (range(0), range(1));
    let side = options.size * FINER;
    let scale = side as f64 * (1.0 - 2.0 * MARGIN) / (x.1 - x.0).max(y.1 - y.0).max(1e-6);
    let mut canvas = Canvas {
        side,
        scale,
        middle: [(x.0 + x.1) / 2.0, (y.0 + y.1) / 2.0],
        rgb: vec![255; side * side * 3],
        depth: vec![f64::NEG_INFINITY; side * side],
    };
    spheres.iter().for_each(|sphere| canvas.sphere(sphere));
    if atoms.cell.is_some() {
        // The edges of the cell join corners that differ along one vector.
        for corner in 0..8usize {
            for axis in [1, 2, 4].into_iter().filter(|axis| corner & axis == 0) {
                canvas.line(corners[corner], corners[corner | axis]);
            }
        }
    }
    Ok(canvas.smaller(options.size))
}

/// The corners of the cell: corner `i` has the vector `k` if bit `k` of `i` is set.
fn corners(atoms: &Atoms) -> [Point; 8] {
    let cell = atoms.cell.unwrap_or_default();
    std::array::from_fn(|corner| {
        let has = |vector: usize| (corner >> vector & 1) as f64;
        cell::times(&[has(0), has(1), has(2)], &cell)
    })
}

/// The spheres of the atoms, and of their images on the opposite faces of a periodic cell.
fn spheres(atoms: &Atoms, camera: &Camera, radius: f64) -> Result<Vec<Sphere>> {
    let mut spheres = Vec::new();
    for (number, position) in atoms.numbers.iter().zip(&atoms.positions) {
        for place in images(atoms, *position)? {
            if spheres.len() == MOST_SPHERES {
                return Err(Error::input(format!("a picture shows at most {MOST_SPHERES} atoms")));
            }
            let (centre, radius) = (camera.see(place), radius * covalent_radius(*number));
            spheres.push(Sphere { centre, radius, colour: colour(*number) });
        }
    }
    Ok(spheres)
}

/// The position in the cell, and its images on the opposite faces if it is on one.
fn images(atoms: &Atoms, position: Point) -> Result<Vec<Point>> {
    let Some(cell) = atoms.cell else { return Ok(vec![position]) };
    let cell = cell::complete_cell(&cell, atoms.periodic)?;
    let mut fractions = cell::times(&position, &cell::inverse(&cell));
    let mut places = Vec::new();
    for (fraction, periodic) in fractions.iter_mut().zip(atoms.periodic) {
        if periodic {
            *fraction -= fraction.floor();
            // Rounding may leave an atom just below the opposite face.
            if *fraction > 1.0 - FACE {
                *fraction -= 1.0;
            }
        }
    }
    for shift in 0..8usize {
        let is_drawn =
            |axis: usize| shift >> axis & 1 == 0 || atoms.periodic[axis] && fractions[axis].abs() < FACE;
        if (0..3).all(is_drawn) {
            let fractions: Point = std::array::from_fn(|axis| fractions[axis] + (shift >> axis & 1) as f64);
            places.push(cell::times(&fractions, &cell));
        }
    }
    Ok(places)
}

/// An orthographic camera.
struct Camera {
    right: Point,
    up: Point,
    towards: Point,
}

impl Camera {
    fn new([around, above]: [f64; 2]) -> Self {
        let ((s, c), (t, d)) = (around.to_radians().sin_cos(), above.to_radians().sin_cos());
        Self { right: [c, s, 0.0], up: [t * s, -t * c, d], towards: [d * s, -d * c, t] }
    }

    fn see(&self, point: Point) -> Point {
        [&self.right, &self.up, &self.towards].map(|axis| cell::dot(axis, &point))
    }
}

/// The picture in the making, at [`FINER`] times its size.
struct Canvas {
    side: usize,
    /// Pixels per Å.
    scale: f64,
    middle: [f64; 2],
    rgb: Vec<u8>,
    /// Distance towards the camera of what is drawn at each pixel, in Å.
    depth: Vec<f64>,
}

impl Canvas {
    /// The position of a point in pixels from the top left corner.
    fn place(&self, point: Point) -> [f64; 2] {
        let half = self.side as f64 / 2.0;
        [half + (point[0] - self.middle[0]) * self.scale, half - (point[1] - self.middle[1]) * self.scale]
    }

    /// The pixels from `low` to `high` that are in the picture.
    fn pixels(&self, low: f64, high: f64) -> std::ops::Range<usize> {
        (low.floor().max(0.0) as usize)..(high.ceil().clamp(0.0, self.side as f64) as usize)
    }

    fn sphere(&mut self, sphere: &Sphere) {
        let ([x, y], radius) = (self.place(sphere.centre), sphere.radius * self.scale);
        for row in self.pixels(y - radius, y + radius) {
            for column in self.pixels(x - radius, x + radius) {
                let across = (column as f64 + 0.5 - x) / radius;
                let up = (y - row as f64 - 0.5) / radius;
                let square = 1.0 - across * across - up * up;
                if square <= 0.0 {
                    continue;
                }
                let near = square.sqrt();
                let normal = [across, up, near];
                let light = cell::dot(&normal, &LIGHT).max(0.0);
                let shine = light.powi(28) * 0.45;
                // The rim is darker, so that spheres of a kind stand out from each other.
                let shade = (0.42 + 0.62 * light) * (0.55 + 0.45 * near.sqrt());
                let colour =
                    sphere.colour.map(|c| (f64::from(c) * shade + 255.0 * shine).clamp(0.0, 255.0) as u8);
                self.dot(column, row, sphere.centre[2] + near * sphere.radius, colour);
            }
        }
    }

    fn line(&mut self, from: Point, to: Point) {
        let (start, end) = (self.place(from), self.place(to));
        let longest = (end[0] - start[0]).abs().max((end[1] - start[1]).abs()).min(4.0 * self.side as f64);
        let steps = longest.ceil().max(1.0) as usize;
        for step in 0..=steps {
            let share = step as f64 / steps as f64;
            let mix = |a: f64, b: f64| a + (b - a) * share;
            let (x, y) = (mix(start[0], end[0]), mix(start[1], end[1]));
            for row in self.pixels(y - 1.0, y + 1.0) {
                for column in self.pixels(x - 1.0, x + 1.0) {
                    self.dot(column, row, mix(from[2], to[2]), EDGE);
                }
            }
        }
    }

    /// Draws a pixel unless something nearer to the camera is there.
    fn dot(&mut self, column: usize, row: usize, depth: f64, colour: [u8; 3]) {
        let at = row * self.side + column;
        if depth > self.depth[at] {
            self.depth[at] = depth;
            self.rgb[3 * at..3 * at + 3].copy_from_slice(&colour);
        }
    }

    /// The picture, each pixel the mean of its samples.
    fn smaller(self, size: usize) -> Image {
        let mean = |row: usize, column: usize, channel: usize| {
            let sample = |i: usize| {
                let at = (row * FINER + i / FINER) * self.side + column * FINER + i % FINER;
                usize::from(self.rgb[3 * at + channel])
            };
            ((0..FINER * FINER).map(sample).sum::<usize>() / (FINER * FINER)) as u8
        };
        let pixels =
            (0..size * size).flat_map(|i| [0, 1, 2].map(|channel| mean(i / size, i % size, channel)));
        Image { width: size, height: size, rgb: pixels.collect() }
    }
}

/// A colour for each element: the usual ones of the commonest, and for the others one that differs from its neighbours'.
fn colour(number: u8) -> [u8; 3] {
    match number {
        1 => [236, 236, 236],
        3 => [178, 110, 230],
        6 => [92, 92, 98],
        7 => [58, 96, 222],
        8 => [222, 42, 36],
        9 => [128, 212, 96],
        11 => [158, 98, 232],
        12 => [104, 200, 60],
        13 => [190, 166, 170],
        14 => [226, 192, 150],
        15 => [240, 140, 30],
        16 => [240, 214, 60],
        17 => [64, 204, 64],
        19 => [138, 72, 196],
        20 => [74, 196, 92],
        26 => [222, 108, 56],
        28 => [84, 190, 92],
        29 => [206, 130, 62],
        30 => [126, 130, 182],
        35 => [160, 56, 44],
        47 => [196, 196, 204],
        53 => [142, 30, 142],
        79 => [246, 206, 58],
        _ => {
            // The golden angle around the circle of hues.
            let hue = (f64::from(number) * 137.508) % 360.0 / 60.0;
            let channel = |offset: f64| {
                let distance = (hue - offset).rem_euclid(6.0);
                let wave = (2.0 - (distance - 3.0).abs()).clamp(-1.0, 1.0);
                (150.0 - 70.0 * wave) as u8
            };
            [channel(0.0), channel(2.0), channel(4.0)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn salt() -> Atoms {
        let positions = vec![[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]];
        let cell = Some([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]]);
        Atoms { numbers: vec![55, 17], positions, cell, periodic: [true; 3], ..Atoms::default() }
    }

    #[test]
    fn an_atom_on_a_corner_is_drawn_on_all_eight() {
        let mut atoms = salt();
        assert_eq!(images(&atoms, [0.0; 3]).unwrap().len(), 8);
        assert_eq!(images(&atoms, [4.0, -1e-9, 8.0]).unwrap().len(), 8);
        assert_eq!(images(&atoms, [2.0, 0.0, 0.0]).unwrap().len(), 4);
        assert_eq!(images(&atoms, [5.0, 1.0, 1.0]).unwrap(), [[1.0, 1.0, 1.0]]);
        atoms.periodic[2] = false;
        assert_eq!(images(&atoms, [0.0; 3]).unwrap().len(), 4);
    }

    #[test]
    fn the_nearer_atom_hides_the_other() {
        let atoms = |near: u8, far: u8| Atoms {
            numbers: vec![far, near],
            positions: vec![[0.0, 3.0, 0.0], [0.0, -3.0, 0.0]],
            ..Atoms::default()
        };
        // Seen along y, from below.
        let options = PictureOptions { size: 64, view: [0.0, 0.0], radius: 1.0 };
        let middle = |near, far| {
            let picture = draw(&atoms(near, far), &options).unwrap();
            let at = 3 * (32 * 64 + 32);
            [picture.rgb[at], picture.rgb[at + 1], picture.rgb[at + 2]]
        };
        let (red, green) = (middle(8, 9), middle(9, 8));
        assert!(red[0] > red[1] && green[1] > green[0], "{red:?} {green:?}");
    }

    #[test]
    fn whatever_is_drawn_fits_and_options_out_of_range_are_refused() {
        let picture = draw(&salt(), &PictureOptions { size: 101, ..PictureOptions::default() }).unwrap();
        let is_white = |row: usize, column: usize| picture.rgb[3 * (row * 101 + column)..][..3] == [255; 3];
        assert!((0..101).all(|i| is_white(0, i) && is_white(i, 0) && is_white(100, i) && is_white(i, 100)));
        assert!(picture.rgb.iter().any(|value| *value < 200));
        for options in [
            PictureOptions { size: 8, ..PictureOptions::default() },
            PictureOptions { radius: 0.0, ..PictureOptions::default() },
            PictureOptions { view: [f64::NAN, 0.0], ..PictureOptions::default() },
        ] {
            assert!(draw(&salt(), &options).is_err(), "{options:?}");
        }
    }
}
