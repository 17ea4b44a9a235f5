//! Renders a scene: a wooden table from its front, blocks and gripper with their shadows, and the position of the gripper
//! over the table. The camera stands before the table, or moves along with the gripper.

use fauna_shared::item::Image;

use crate::objects::{BLOCK, Block, Gripper, JAW, SPAN};
use crate::paint::{Camera, Canvas, Point, Rgb, cross, minus, unit};
use crate::scene::View;

/// Where a camera stands and what it looks at, and its focal lengths along the width and the height of the image, in images.
struct Mount {
    eye: Point,
    target: Point,
    zoom: [f64; 2],
}

const FIXED: Mount = Mount { eye: [0.0, -0.58, 0.74], target: [0.0, 0.015, 0.05], zoom: [1.5, 1.5] };
/// Relative to the point of the table under the gripper. Its field of view is wider than high, and nearly every block is seen
/// from where a gripper starts.
const CARRIAGE: Mount = Mount { eye: [0.0, -0.62, 0.79], target: [0.0, 0.0, 0.04], zoom: [1.85, 2.6] };
/// Direction of the light.
const LIGHT: Point = [-0.35, -0.30, 1.0];
/// Extent of the table: half its width, its front, its back.
const TABLE: [f64; 3] = [0.46, -0.33, 0.32];
/// Half the width of a jaw, its height, and how far it reaches below the position of the gripper.
const JAW_HALF: f64 = 0.011;
const JAW_HEIGHT: f64 = 0.062;
const TIP: f64 = 0.008;

const STEEL: Rgb = [0.34, 0.37, 0.42];
const SHELL: Rgb = [0.93, 0.94, 0.95];
const PAD: Rgb = [0.16, 0.17, 0.20];
const GUIDE: Rgb = [1.0, 1.0, 1.0];

/// A box: its centre, half its sides, and its axes.
struct Solid {
    middle: Point,
    half: Point,
    axes: [Point; 3],
    colour: Rgb,
}

impl Solid {
    fn corner(&self, signs: [f64; 3]) -> Point {
        std::array::from_fn(|k| {
            self.middle[k]
                + (0..3).map(|axis| signs[axis] * self.half[axis] * self.axes[axis][k]).sum::<f64>()
        })
    }

    fn corners(&self) -> Vec<Point> {
        let sign = |i: usize, bit: usize| if i >> bit & 1 == 1 { 1.0 } else { -1.0 };
        (0..8).map(|i| self.corner([sign(i, 0), sign(i, 1), sign(i, 2)])).collect()
    }

    fn paint(&self, canvas: &mut Canvas) {
        for axis in 0..3 {
            for sign in [-1.0, 1.0] {
                let around = [[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]].map(|[a, b]| {
                    let mut signs = [sign; 3];
                    signs[(axis + 1) % 3] = a;
                    signs[(axis + 2) % 3] = b;
                    self.corner(signs)
                });
                let normal = self.axes[axis].map(|x| x * sign);
                canvas.polygon(&around, shaded(self.colour, normal));
            }
        }
    }
}

/// The colour of a lit face.
fn shaded(colour: Rgb, normal: Point) -> Rgb {
    let light = unit(LIGHT);
    let facing = (0..3).map(|k| normal[k] * light[k]).sum::<f64>().max(0.0) as f32;
    colour.map(|level| (level * (0.50 + 0.56 * facing)).min(1.0))
}

/// Renders the scene at `size` by `size` pixels.
pub fn render(blocks: &[Block], gripper: &Gripper, view: View, size: usize) -> Image {
    let camera = camera(view, gripper, size);
    let mut canvas = Canvas::new(&camera, size);
    let solids: Vec<Solid> = blocks.iter().map(block_solid).chain(gripper_solids(gripper)).collect();
    // An area light: the edges of shadows are soft.
    let lamp = [
        [0.0, 0.0],
        [0.06, 0.02],
        [-0.06, -0.02],
        [0.02, -0.06],
        [-0.02, 0.06],
        [0.04, -0.04],
        [-0.04, 0.04],
    ];
    let lights = lamp.map(|[x, y]| [LIGHT[0] * 0.7 + x, LIGHT[1] * 0.5 + y, LIGHT[2]]);
    let corners: Vec<Vec<Point>> = solids.iter().map(Solid::corners).collect();
    let shadows = canvas.shadow(&corners, &lights);
    let over = gripper.position;
    canvas.backdrop(&shadows, |point, shadow| table(point, shadow, over), wall);
    edge(&mut canvas);
    plumb(&mut canvas, over);
    solids.iter().for_each(|solid| solid.paint(&mut canvas));
    canvas.finish()
}

fn camera(view: View, gripper: &Gripper, size: usize) -> Camera {
    let ([x, y, _], mount) = match view {
        View::Fixed => ([0.0; 3], FIXED),
        View::Carriage => (gripper.position, CARRIAGE),
    };
    let moved = |point: Point| [point[0] + x, point[1] + y, point[2]];
    Camera::new(moved(mount.eye), moved(mount.target), mount.zoom, size)
}

fn block_solid(block: &Block) -> Solid {
    let (sin, cos) = block.yaw.sin_cos();
    Solid {
        middle: block.position,
        half: [BLOCK / 2.0; 3],
        axes: [[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]],
        colour: block.colour.rgb(),
    }
}

/// Jaws with their pads, palm, wrist, and the arm.
fn gripper_solids(gripper: &Gripper) -> Vec<Solid> {
    let axes = rotation_axes(gripper.rotation);
    let part = |offset: Point, half: Point, colour: Rgb| Solid {
        middle: std::array::from_fn(|k| {
            gripper.position[k] + (0..3).map(|axis| offset[axis] * axes[axis][k]).sum::<f64>()
        }),
        half,
        axes,
        colour,
    };
    let out = gripper.opening * SPAN / 2.0 + JAW / 2.0;
    let palm = JAW_HEIGHT - TIP;
    let mut parts = Vec::new();
    for side in [-1.0, 1.0] {
        let middle = JAW_HEIGHT / 2.0 - TIP;
        parts.push(part([side * out, 0.0, middle], [JAW / 2.0, JAW_HALF, JAW_HEIGHT / 2.0], STEEL));
        let pad = side * (out - JAW / 2.0);
        parts.push(part([pad, 0.0, 0.004], [0.0015, JAW_HALF * 0.8, 0.011], PAD));
    }
    parts.push(part([0.0, 0.0, palm + 0.014], [SPAN / 2.0 + JAW + 0.004, 0.018, 0.014], SHELL));
    parts.push(part([0.0, 0.0, palm + 0.045], [0.024, 0.022, 0.017], STEEL));
    parts.push(part([0.0, 0.0, palm + 0.25], [0.017, 0.017, 0.19], SHELL));
    parts
}

/// The axes of a rotation by roll, pitch and yaw.
fn rotation_axes([roll, pitch, yaw]: Point) -> [Point; 3] {
    let ((sr, cr), (sp, cp), (sy, cy)) = (roll.sin_cos(), pitch.sin_cos(), yaw.sin_cos());
    let right = [cy * cp, sy * cp, -sp];
    let back = [cy * sp * sr - sy * cr, sy * sp * sr + cy * cr, cp * sr];
    [right, back, cross(right, back)]
}

/// The colour of the table at a point: planks, shadows, and a ring under the gripper.
fn table([x, y]: [f64; 2], shadow: f32, over: Point) -> Option<Rgb> {
    if x.abs() > TABLE[0] || !(TABLE[1]..TABLE[2]).contains(&y) {
        return None;
    }
    let plank = ((x + TABLE[0]) / 0.11).floor();
    let seam = ((x + TABLE[0]) - plank * 0.11).min((plank + 1.0) * 0.11 - (x + TABLE[0])) < 0.0012;
    let tint = [0.0, 0.022, -0.014, 0.012][plank as usize % 4] as f32;
    let mut colour = [0.80 + tint, 0.66 + tint, 0.49 + tint];
    if seam {
        colour = colour.map(|level| level * 0.87);
    }
    let far = minus([x, y, 0.0], [over[0], over[1], 0.0]);
    let ring = (far[0].hypot(far[1]) - 0.014).abs() < 0.0016;
    let lit = colour.map(|level| level * (1.0 - 0.42 * shadow));
    Some(if ring { mixed(lit, GUIDE, 0.65) } else { lit })
}

fn mixed(a: Rgb, b: Rgb, share: f32) -> Rgb {
    std::array::from_fn(|k| a[k] + (b[k] - a[k]) * share)
}

/// The colour of the wall behind the table, lighter towards its bottom.
fn wall(height: f32) -> Rgb {
    mixed([0.55, 0.62, 0.70], [0.83, 0.87, 0.90], (height * 2.2).min(1.0))
}

/// The front edge of the table.
fn edge(canvas: &mut Canvas) {
    let [side, front, _] = TABLE;
    let corners = [[-side, front, 0.0], [side, front, 0.0], [side, front, -0.03], [-side, front, -0.03]];
    canvas.polygon(&corners, [0.55, 0.43, 0.30]);
}

/// A dashed line from the fingertips down to the table.
fn plumb(canvas: &mut Canvas, [x, y, z]: Point) {
    let (dash, half) = (0.008, 0.0008);
    let dashes = (z / (2.0 * dash)) as usize;
    for i in 0..dashes.min(64) {
        let low = 2.0 * dash * i as f64;
        let corners =
            [[x - half, y, low], [x + half, y, low], [x + half, y, low + dash], [x - half, y, low + dash]];
        canvas.polygon(&corners, GUIDE);
    }
}
