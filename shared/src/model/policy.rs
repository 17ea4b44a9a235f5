//! The interface of robot policies.

use std::borrow::Cow;

use serde::Serialize;

use crate::Result;
use crate::item::Image;

/// A policy that maps camera images and an instruction to robot actions.
pub trait Policy: Send + Sync {
    /// Starts an instruction. Computations that do not depend on the frame are done once here.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for an invalid instruction, and for an `unnorm_key` that is unknown,
    /// or missing if there are several action statistics; the message lists the known keys.
    fn start(&self, task: &Task) -> Result<Box<dyn Controller + '_>>;
}

/// A policy with a fixed instruction. A control loop calls [`act`](Controller::act) with each new frame.
pub trait Controller: Send {
    /// Predicts the action for an observation: one number per [degree of freedom](Controller::degrees).
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for an invalid frame or state.
    fn act(&mut self, seen: &Observation) -> Result<Vec<f64>>;

    /// The degrees of freedom of an action, in the order of [`act`](Controller::act), with distinct names. They depend
    /// on the task, because data sets are of different robots.
    fn degrees(&self) -> &[DegreeOfFreedom];
}

/// A task for a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Task {
    /// Instruction: "pick up the red block".
    pub instruction: String,
    /// Data set whose action statistics are used to unnormalize actions, for models trained on several data sets.
    pub unnorm_key: Option<String>,
}

impl From<&str> for Task {
    fn from(instruction: &str) -> Self {
        Self { instruction: instruction.to_string(), unnorm_key: None }
    }
}

/// The observation of one step of a control loop.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// Camera image.
    pub frame: &'a Image,
    /// Proprioceptive state of the robot, for policies that use it; may be empty.
    pub state: &'a [f64],
}

impl<'a> From<&'a Image> for Observation<'a> {
    fn from(frame: &'a Image) -> Self {
        Self { frame, state: &[] }
    }
}

/// A degree of freedom of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DegreeOfFreedom {
    /// Name: `x`, `roll`, `gripper`; `a0`, `a1`, … if unknown.
    pub name: Cow<'static, str>,
    /// Unit: `m`, `rad`, or a range such as `0 closed to 1 open`; `None` if unknown.
    pub unit: Option<&'static str>,
}

impl DegreeOfFreedom {
    /// The seven numbers of an end-effector action, as in Open X-Embodiment: the change of the gripper's position and
    /// rotation, and its opening.
    pub const END_EFFECTOR: &'static [Self; 7] = &[
        Self::named("x", "m"),
        Self::named("y", "m"),
        Self::named("z", "m"),
        Self::named("roll", "rad"),
        Self::named("pitch", "rad"),
        Self::named("yaw", "rad"),
        Self::named("gripper", "0 closed to 1 open"),
    ];

    const fn named(name: &'static str, unit: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), unit: Some(unit) }
    }
}
