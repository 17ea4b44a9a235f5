//! A small rasteriser: polygons in perspective with a depth buffer, and shadows on the ground.

use fauna_shared::item::Image;

/// Red, green and blue, each from 0 to 1.
pub type Rgb = [f32; 3];
/// A point in metres: x to the right, y to the back, z up.
pub type Point = [f64; 3];

/// Number of samples per pixel along each axis.
const SUPERSAMPLING: usize = 2;

/// A pinhole camera.
pub struct Camera {
    eye: Point,
    right: Point,
    down: Point,
    forward: Point,
    /// Focal lengths along the width and the height, in samples.
    focal: [f64; 2],
    centre: f64,
}

fn dot(a: Point, b: Point) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub fn cross(a: Point, b: Point) -> Point {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

pub fn minus(a: Point, b: Point) -> Point {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

pub fn unit(a: Point) -> Point {
    let length = dot(a, a).sqrt().max(1e-12);
    a.map(|x| x / length)
}

impl Camera {
    /// A camera at `eye` that looks at `target`, with focal lengths along the width and the height of `zoom` images of `side`
    /// pixels.
    pub fn new(eye: Point, target: Point, zoom: [f64; 2], side: usize) -> Self {
        let forward = unit(minus(target, eye));
        let right = unit(cross(forward, [0.0, 0.0, 1.0]));
        let samples = (side * SUPERSAMPLING) as f64;
        Self {
            eye,
            right,
            down: cross(forward, right),
            forward,
            focal: zoom.map(|zoom| zoom * samples),
            centre: samples / 2.0,
        }
    }

    /// The sample of a point and its inverse depth; `None` behind the camera.
    fn project(&self, place: Point) -> Option<[f64; 3]> {
        let from_eye = minus(place, self.eye);
        let depth = dot(from_eye, self.forward);
        let at = |axis: Point, focal: f64| self.centre + focal * dot(from_eye, axis) / depth;
        let [across, along] = self.focal;
        (depth > 0.05).then(|| [at(self.right, across), at(self.down, along), 1.0 / depth])
    }

    /// The intersection of the ray through a sample with the ground and its inverse depth; `None` if there is none.
    fn ground(&self, x: f64, y: f64) -> Option<([f64; 2], f64)> {
        let (x, y) = ((x - self.centre) / self.focal[0], (y - self.centre) / self.focal[1]);
        let ray: Point = std::array::from_fn(|i| self.forward[i] + x * self.right[i] + y * self.down[i]);
        let depth = -self.eye[2] / ray[2];
        (ray[2] < -1e-9 && depth < 20.0)
            .then(|| ([self.eye[0] + depth * ray[0], self.eye[1] + depth * ray[1]], 1.0 / depth))
    }
}

/// A supersampled image with a depth buffer.
pub struct Canvas<'a> {
    camera: &'a Camera,
    side: usize,
    colours: Vec<Rgb>,
    /// Inverse depth of the nearest surface.
    near: Vec<f64>,
}

impl<'a> Canvas<'a> {
    /// A black canvas for an image of `side` pixels.
    pub fn new(camera: &'a Camera, side: usize) -> Self {
        let side = side * SUPERSAMPLING;
        Self { camera, side, colours: vec![[0.0; 3]; side * side], near: vec![0.0; side * side] }
    }

    /// Paints the background: `ground` by its point where a ray meets it and it returns a colour, else `sky` by the height
    /// in the image, from 0 at the top to 1. `shadows` is the result of [`shadow`](Canvas::shadow).
    pub fn backdrop(
        &mut self,
        shadows: &[f32],
        ground: impl Fn([f64; 2], f32) -> Option<Rgb>,
        sky: impl Fn(f32) -> Rgb,
    ) {
        let side = self.side;
        for (i, (colour, near)) in self.colours.iter_mut().zip(&mut self.near).enumerate() {
            let (x, y) = ((i % side) as f64 + 0.5, (i / side) as f64 + 0.5);
            let hit = self.camera.ground(x, y);
            let seen = hit.and_then(|(place, inverse)| Some((ground(place, shadows[i])?, inverse)));
            (*colour, *near) = match seen {
                // Objects on the ground are in front of it.
                Some((colour, inverse)) => (colour, inverse - 1e-6),
                None => (sky(y as f32 / side as f32), 0.0),
            };
        }
    }

    /// The shadow at each sample of the ground, from 0 to 1: the share of the `lights`, given as directions towards them,
    /// that a solid hides. `solids` holds the corners of each.
    pub fn shadow(&self, solids: &[Vec<Point>], lights: &[Point]) -> Vec<f32> {
        let mut dark = vec![0f32; self.side * self.side];
        let mut hidden = vec![false; dark.len()];
        for light in lights {
            hidden.fill(false);
            for corners in solids {
                let fallen = |corner: &Point| {
                    let far = corner[2] / light[2];
                    self.camera.project([corner[0] - far * light[0], corner[1] - far * light[1], 0.0])
                };
                let Some(points) = corners.iter().map(fallen).collect::<Option<Vec<_>>>() else { continue };
                let hull = hull(points.iter().map(|point| [point[0], point[1]]).collect());
                for corner in 1..hull.len().saturating_sub(1) {
                    let triangle = [hull[0], hull[corner], hull[corner + 1]];
                    each_sample(triangle, self.side, |i, _| hidden[i] = true);
                }
            }
            for (dark, hidden) in dark.iter_mut().zip(&hidden) {
                *dark += f32::from(u8::from(*hidden)) / lights.len() as f32;
            }
        }
        dark
    }

    /// Paints a flat convex polygon in one colour.
    pub fn polygon(&mut self, corners: &[Point], colour: Rgb) {
        let points: Option<Vec<_>> = corners.iter().map(|corner| self.camera.project(*corner)).collect();
        let Some(points) = points else { return };
        for corner in 1..points.len().saturating_sub(1) {
            let triangle = [points[0], points[corner], points[corner + 1]];
            let (colours, near) = (&mut self.colours, &mut self.near);
            each_sample(triangle.map(|point| [point[0], point[1]]), self.side, |i, weights| {
                let inverse: f64 = (0..3).map(|k| weights[k] * triangle[k][2]).sum();
                if inverse > near[i] {
                    near[i] = inverse;
                    colours[i] = colour;
                }
            });
        }
    }

    /// The image, each pixel the mean of its samples.
    pub fn finish(&self) -> Image {
        let side = self.side / SUPERSAMPLING;
        let mut rgb = Vec::with_capacity(side * side * 3);
        for pixel in 0..side * side {
            let (x, y) = (pixel % side * SUPERSAMPLING, pixel / side * SUPERSAMPLING);
            let mut sum = [0f32; 3];
            for sample in 0..SUPERSAMPLING * SUPERSAMPLING {
                let colour =
                    self.colours[(y + sample / SUPERSAMPLING) * self.side + x + sample % SUPERSAMPLING];
                sum.iter_mut().zip(colour).for_each(|(sum, level)| *sum += level);
            }
            let byte = |sum: f32| {
                (sum / (SUPERSAMPLING * SUPERSAMPLING) as f32 * 255.0).round().clamp(0.0, 255.0) as u8
            };
            rgb.extend(sum.map(byte));
        }
        Image { width: side, height: side, rgb }
    }
}

/// Calls `each` with every sample of a square of `side` whose centre is in the triangle, and its barycentric coordinates.
fn each_sample(triangle: [[f64; 2]; 3], side: usize, mut each: impl FnMut(usize, [f64; 3])) {
    let [a, b, c] = triangle;
    let area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
    if area.abs() < 1e-9 {
        return;
    }
    let bounds = |axis: usize| {
        let ends = triangle.map(|point| point[axis]);
        let low = ends.into_iter().fold(f64::INFINITY, f64::min).floor().max(0.0) as usize;
        let high = ends.into_iter().fold(f64::NEG_INFINITY, f64::max).ceil().clamp(0.0, side as f64) as usize;
        low..high
    };
    let (rows, columns) = (bounds(1), bounds(0));
    for y in rows {
        for x in columns.clone() {
            let (px, py) = (x as f64 + 0.5, y as f64 + 0.5);
            let of_b = ((px - a[0]) * (c[1] - a[1]) - (py - a[1]) * (c[0] - a[0])) / area;
            let of_c = ((b[0] - a[0]) * (py - a[1]) - (b[1] - a[1]) * (px - a[0])) / area;
            let of_a = 1.0 - of_b - of_c;
            if of_a >= -1e-9 && of_b >= -1e-9 && of_c >= -1e-9 {
                each(y * side + x, [of_a, of_b, of_c]);
            }
        }
    }
}

/// The convex hull of points, in order.
fn hull(mut points: Vec<[f64; 2]>) -> Vec<[f64; 2]> {
    points.sort_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    let left_of = |a: [f64; 2], b: [f64; 2], c: [f64; 2]| {
        (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) > 0.0
    };
    let half = |points: &mut dyn Iterator<Item = [f64; 2]>| {
        let mut line: Vec<[f64; 2]> = Vec::new();
        for point in points {
            while line.len() > 1 && !left_of(line[line.len() - 2], line[line.len() - 1], point) {
                line.pop();
            }
            line.push(point);
        }
        line.pop();
        line
    };
    let lower = half(&mut points.iter().copied());
    let upper = half(&mut points.iter().rev().copied());
    [lower, upper].concat()
}
