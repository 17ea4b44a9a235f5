//! The science exhibits.
