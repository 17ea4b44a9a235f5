//! Blocks and gripper of a scene.

/// Side of a block, in metres.
pub(crate) const BLOCK: f64 = 0.04;
/// Distance between the jaws of the open gripper, in metres.
pub(crate) const SPAN: f64 = 0.08;
/// Thickness of a jaw, in metres.
pub(crate) const JAW: f64 = 0.012;

/// Colour of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say all")]
pub enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
    Orange,
}

impl Colour {
    /// All colours, in the order of their indices in a state.
    pub const ALL: [Self; 6] = [Self::Red, Self::Green, Self::Blue, Self::Yellow, Self::Purple, Self::Orange];

    /// Name in an instruction.
    pub fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Purple => "purple",
            Self::Orange => "orange",
        }
    }

    pub(crate) fn rgb(self) -> [f32; 3] {
        match self {
            Self::Red => [0.86, 0.20, 0.18],
            Self::Green => [0.24, 0.66, 0.32],
            Self::Blue => [0.20, 0.42, 0.85],
            Self::Yellow => [0.96, 0.80, 0.22],
            Self::Purple => [0.56, 0.32, 0.74],
            Self::Orange => [0.95, 0.52, 0.16],
        }
    }
}

/// A block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block {
    /// Colour.
    pub colour: Colour,
    /// Position of its centre in metres: x to the right, y to the back, z up from the table.
    pub position: [f64; 3],
    /// Rotation about the vertical axis, in radians.
    pub yaw: f64,
}

/// The gripper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gripper {
    /// Position of the centre between the fingertips, in metres.
    pub position: [f64; 3],
    /// Roll, pitch and yaw, in radians; without rotation the jaws open along x.
    pub rotation: [f64; 3],
    /// Opening, from 0 (closed) to 1 (open).
    pub opening: f64,
    /// Index of the block that it holds.
    pub held_block: Option<usize>,
}
