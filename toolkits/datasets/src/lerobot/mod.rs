//! Episodes of robots in the layout of LeRobot.

#[cfg(feature = "parquet")]
mod info;
#[cfg(feature = "parquet")]
mod read;
#[cfg(all(feature = "parquet", feature = "image"))]
mod write;

#[cfg(feature = "parquet")]
pub(crate) use read::open;
#[cfg(all(feature = "parquet", feature = "image"))]
pub use write::{EpisodeFrame, RobotEpisode, WriteOptions, write_episodes};

#[cfg(not(feature = "parquet"))]
pub(crate) fn open(
    _path: &std::path::Path,
    _options: &crate::DatasetOptions,
) -> fauna_shared::Result<crate::dataset::Opened> {
    Err(crate::dataset::without_feature("parquet", "Parquet, in which episodes of robots are stored"))
}
