//! The audio exhibits.
