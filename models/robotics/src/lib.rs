//! The robotics exhibits.
