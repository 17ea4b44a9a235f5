//! The files of a model as data of a program.

/// A checkpoint: its name and its files.
#[derive(Debug, Clone, Copy)]
pub struct Bundle {
    /// The name of the model.
    pub name: &'static str,
    /// Each file: its path in the folder, with `/` as separator, and its bytes.
    pub files: &'static [(&'static str, &'static [u8])],
}

impl Bundle {
    /// The bytes of the file `name`.
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        self.files.iter().find(|(path, _)| *path == name).map(|(_, bytes)| *bytes)
    }

    /// The size of all files in bytes.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }
}

/// A [`Bundle`] of files in a folder of the crate that calls this: its name, the folder, the files.
///
/// ```
/// const PACKAGE: fauna_bundle::Bundle = fauna_bundle::bundle!("package", "src", ["lib.rs"]);
/// assert!(PACKAGE.file("lib.rs").unwrap().starts_with(b"//! The files"));
/// ```
#[macro_export]
macro_rules! bundle {
    ($name:literal, $folder:literal, [$($file:literal),+ $(,)?]) => {
        $crate::Bundle {
            name: $name,
            files: &[
                $(($file, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $folder, "/", $file)) as &[u8])),+
            ],
        }
    };
}
