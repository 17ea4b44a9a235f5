//! Seeded files: the checkpoint of a parity case without the bytes that PyTorch's random number generator reproduces.
//!
//! `NAME.seeded` stands for `NAME`. Its first line is JSON; after it follow the bytes of `NAME` that are not random:
//!
//! ```text
//! {"format": "fauna-seeded-1", "length": 76984, "sha256": "…",
//!  "values": [{"seed": 3131, "dtype": "f32", "mul": 1.3, "div": 4.898979}, …],
//!  "parts": [5608, [0, 2424, 576], …]}
//! ```
//!
//! The parts are those of `NAME` in order: a number is a number of bytes of this file, `[which, at, count]` are `count`
//! values of `values[which]`, drawn after `at` numbers of the generator. A value is `noise * mul / div + add` in float32,
//! rounded after each operation (`mul` and `div` are 1 and `add` is 0 by default), rounded to the dtype `round` if it is
//! set, and stored as `dtype`: `f32`, `f16` or `bf16`. The noise is bit by bit that of PyTorch on the CPU,
//! `torch.randn(count, generator=torch.Generator().manual_seed(seed))`, which initializes the small models of the cases.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

use half::{bf16, f16};
use ring::digest;
use serde::Deserialize;

use crate::{Error, Result};

const FORMAT: &str = "fauna-seeded-1";
const ENDING: &str = "seeded";

/// Maximum length of the first line, in bytes.
const MOST_HEADER: usize = 4 << 20;

/// Maximum size of the reconstructed file, in bytes.
const MOST_BYTES: usize = 1 << 28;

/// Maximum number of random numbers of one file.
const MOST_DRAWN: usize = 1 << 25;

/// PyTorch draws fewer values than these by another algorithm.
const FEWEST: usize = 16;

/// The folder of a model of a parity case, without seeded files.
///
/// If the folder has seeded files (`NAME.seeded`, see `tests/parity/README.md`), this is a temporary copy with the
/// reconstructed files, which is removed on drop.
#[derive(Debug)]
pub struct ModelFolder {
    folder: PathBuf,
    scratch: bool,
}

impl ModelFolder {
    /// Opens the model in `folder`, and reconstructs its seeded files.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) if a seeded file is invalid or its SHA-256 differs, and those of reading and
    /// writing files.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        files_below(folder, Path::new(""), &mut files)?;
        if !files.iter().any(|file| has_ending(file)) {
            return Ok(Self { folder: folder.to_path_buf(), scratch: false });
        }
        let written = Self { folder: scratch()?, scratch: true };
        for file in &files {
            let (from, to) = (folder.join(file), written.folder.join(file));
            let above = to.parent().unwrap_or(&written.folder);
            fs::create_dir_all(above).map_err(|e| Error::io(above, "make", e))?;
            if has_ending(file) {
                let to = to.with_extension("");
                if files.contains(&file.with_extension("")) {
                    return Err(Error::format(&from, "the folder also contains the file that it stands for")
                        .hint("remove one of the two"));
                }
                let bytes = read(&from)?;
                let bytes = written_out(&bytes).map_err(|problem| Error::format(&from, problem))?;
                fs::write(&to, bytes).map_err(|e| Error::io(&to, "write", e))?;
            } else {
                fs::copy(&from, &to).map_err(|e| Error::io(&from, "copy", e))?;
            }
        }
        Ok(written)
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Whether it is a temporary copy.
    pub(super) fn is_copy(&self) -> bool {
        self.scratch
    }
}

impl Drop for ModelFolder {
    fn drop(&mut self) {
        if self.scratch {
            // A folder that cannot be removed is left to the operating system.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).map_err(|e| Error::io(path, "read", e))?.len();
    if length > (MOST_HEADER + MOST_BYTES) as u64 {
        return Err(Error::format(path, format!("{length} bytes, more than such a file can have")));
    }
    fs::read(path).map_err(|e| Error::io(path, "read", e))
}

fn has_ending(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == ENDING)
}

/// Lists the files below `folder`, relative to `root`.
fn files_below(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let whole = root.join(folder);
    for entry in fs::read_dir(&whole).map_err(|e| Error::io(&whole, "list", e))? {
        let entry = entry.map_err(|e| Error::io(&whole, "list", e))?;
        let name = folder.join(entry.file_name());
        match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => files_below(root, &name, files)?,
            false => files.push(name),
        }
    }
    Ok(())
}

/// Creates a temporary folder of this process.
fn scratch() -> Result<PathBuf> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("fauna-seeded-{}-{number}", std::process::id()));
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            // Left by an earlier process with the same id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(&folder, "make", error)),
        }
    }
}

// ---------------------------------------------------------------- the file

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    length: usize,
    sha256: String,
    values: Vec<Values>,
    parts: Vec<Part>,
}

/// How the noise of a seed becomes values.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Values {
    seed: u32,
    dtype: Stored,
    #[serde(default = "one")]
    mul: f32,
    #[serde(default = "one")]
    div: f32,
    #[serde(default)]
    add: f32,
    #[serde(default)]
    round: Option<Stored>,
}

fn one() -> f32 {
    1.0
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Stored {
    F32,
    F16,
    Bf16,
}

impl Stored {
    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn rounded(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    fn write(self, value: f32, to: &mut Vec<u8>) {
        match self {
            Self::F32 => to.extend(value.to_le_bytes()),
            Self::F16 => to.extend(f16::from_f32(value).to_le_bytes()),
            Self::Bf16 => to.extend(bf16::from_f32(value).to_le_bytes()),
        }
    }
}

impl Values {
    fn of(&self, noise: f32) -> f32 {
        let value = noise * self.mul / self.div + self.add;
        self.round.map_or(value, |round| round.rounded(value))
    }
}

#[derive(Deserialize, Clone, Copy)]
#[serde(untagged, expecting = "a part is a number of bytes, or [which of values, at, count]")]
enum Part {
    Literal(usize),
    Drawn(usize, usize, usize),
}

impl Header {
    /// Validates the header, with `rest` bytes after the first line; returns the number of random numbers of each seed.
    fn check(&self, rest: usize) -> std::result::Result<BTreeMap<u32, usize>, String> {
        if self.format != FORMAT {
            return Err(format!("format is {:?}, where {FORMAT:?} is known", self.format));
        }
        if self.length > MOST_BYTES {
            return Err(format!("length is {}, at most {MOST_BYTES} can be made", self.length));
        }
        for (i, values) in self.values.iter().enumerate() {
            if !values.div.is_normal() || !values.mul.is_finite() || !values.add.is_finite() {
                return Err(format!("values[{i}]: mul, div and add are finite numbers, and div is not 0"));
            }
        }
        let (mut made, mut literal, mut total, mut needed) = (0usize, 0usize, 0usize, BTreeMap::new());
        for (i, &part) in self.parts.iter().enumerate() {
            let bytes = match part {
                Part::Literal(bytes) => {
                    literal = literal.saturating_add(bytes);
                    bytes
                }
                Part::Drawn(which, at, count) => {
                    let Some(values) = self.values.get(which) else {
                        return Err(format!("parts[{i}]: values[{which}] is not there"));
                    };
                    if count < FEWEST {
                        return Err(format!("parts[{i}]: {count} values, where {FEWEST} or more are drawn"));
                    }
                    let last = at.saturating_add(drawn(count));
                    let most = needed.entry(values.seed).or_insert(0);
                    total = total.saturating_add(last.saturating_sub(*most));
                    *most = last.max(*most);
                    if total > MOST_DRAWN {
                        return Err(format!(
                            "parts[{i}]: more than {MOST_DRAWN} random numbers are asked for"
                        ));
                    }
                    count.saturating_mul(values.dtype.size())
                }
            };
            made = made.saturating_add(bytes);
        }
        if made != self.length {
            return Err(format!("length is {}, the parts make {made} bytes", self.length));
        }
        if literal != rest {
            return Err(format!(
                "the parts take {literal} bytes from this file, {rest} follow the first line"
            ));
        }
        Ok(needed)
    }
}

/// Reconstructs the file of `seeded`, or returns an error message.
fn written_out(seeded: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let end = seeded.iter().take(MOST_HEADER).position(|&byte| byte == b'\n');
    let Some(end) = end else {
        return Err(format!("no first line of at most {MOST_HEADER} bytes, which is JSON"));
    };
    let (line, mut rest) = (&seeded[..end], &seeded[end + 1..]);
    let header: Header = serde_json::from_slice(line).map_err(|e| format!("the first line: {e}"))?;
    let needed = header.check(rest.len())?;
    let streams: BTreeMap<u32, Vec<f32>> =
        needed.into_iter().map(|(seed, count)| (seed, uniforms(seed, count))).collect();
    let mut made = Vec::with_capacity(header.length);
    for &part in &header.parts {
        match part {
            Part::Literal(bytes) => {
                let (here, others) = rest.split_at(bytes);
                made.extend_from_slice(here);
                rest = others;
            }
            Part::Drawn(which, at, count) => {
                let values = &header.values[which];
                let noise = noise(&streams[&values.seed][at..at + drawn(count)], count);
                noise.iter().for_each(|&noise| values.dtype.write(values.of(noise), &mut made));
            }
        }
    }
    let found = hexadecimal(digest::digest(&digest::SHA256, &made).as_ref());
    match found == header.sha256 {
        true => Ok(made),
        false => Err(format!("the reconstructed file has the SHA-256 {found}, expected {:?}", header.sha256)),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

// ---------------------------------------------------------------- PyTorch's noise

/// Number of random numbers that `count` values take.
fn drawn(count: usize) -> usize {
    match count % 16 {
        0 => count,
        _ => count.saturating_add(16),
    }
}

/// The first `count` numbers of `torch.rand` after `manual_seed(seed)`: MT19937, the lower 24 bits of each.
fn uniforms(seed: u32, count: usize) -> Vec<f32> {
    const N: usize = 624;
    const M: usize = 397;
    let mut state = [0u32; N];
    state[0] = seed;
    for i in 1..N {
        let last = state[i - 1];
        state[i] = (last ^ last >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
    }
    let mut numbers = Vec::with_capacity(count);
    while numbers.len() < count {
        for i in 0..N {
            let y = state[i] & 0x8000_0000 | state[(i + 1) % N] & 0x7fff_ffff;
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            state[i] = state[(i + M) % N] ^ y >> 1 ^ odd;
        }
        for mut y in state.into_iter().take(count - numbers.len()) {
            y ^= y >> 11;
            y ^= y << 7 & 0x9d2c_5680;
            y ^= y << 15 & 0xefc6_0000;
            y ^= y >> 18;
            numbers.push((y & 0xff_ffff) as f32 * 2f32.powi(-24));
        }
    }
    numbers
}

/// `count` values of `torch.randn` from the numbers it draws for them: of each sixteen numbers, eight are radii and eight
/// are angles; the last sixteen are drawn again if `count` is not a multiple of sixteen.
fn noise(uniforms: &[f32], count: usize) -> Vec<f32> {
    let mut values = uniforms[..count].to_vec();
    values.chunks_exact_mut(16).for_each(polar);
    if !count.is_multiple_of(16) {
        values[count - 16..].copy_from_slice(&uniforms[count..]);
        polar(&mut values[count - 16..]);
    }
    values
}

/// Box and Muller's transform of sixteen numbers.
fn polar(values: &mut [f32]) {
    let (radii, angles) = values.split_at_mut(8);
    for (first, second) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * logarithm(1.0 - *first)).sqrt();
        let (sine, cosine) = sine_and_cosine(2.0 * std::f32::consts::PI * *second);
        // Torch adds a mean of 0, so no zero is negative.
        *first = radius * cosine + 0.0;
        *second = radius * sine + 0.0;
    }
}

// The two functions below round as torch does for AVX2, which is Julien Pommier's and Giovanni Garberoglio's
// `avx_mathfun.h` (Cephes' polynomials, zlib licence) with its products and sums fused by the compiler. This is an
// independent implementation for the arguments used here, x in (0, 1] and x in [0, 2 pi).

fn logarithm(x: f32) -> f32 {
    const POLYNOMIAL: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_87e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.to_bits();
    // x = m * 2^e with m in [sqrt(1/2), sqrt(2)).
    let mut e = (bits >> 23) as f32 - 126.0;
    let mut m = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    if m < std::f32::consts::FRAC_1_SQRT_2 {
        e -= 1.0;
        m = m - 1.0 + m;
    } else {
        m -= 1.0;
    }
    let square = m * m;
    let y = POLYNOMIAL[1..].iter().fold(POLYNOMIAL[0], |y, &p| y.mul_add(m, p)) * m;
    let y = y.mul_add(square, e * -2.121_944_4e-4);
    let y = (-square).mul_add(0.5, y);
    e.mul_add(0.693_359_4, m + y)
}

fn sine_and_cosine(x: f32) -> (f32, f32) {
    let octant = ((x * 1.273_239_5) as u32 + 1) & !1;
    let y = octant as f32;
    let x =
        [-0.785_156_25f32, -2.418_756_5e-4, -3.774_895e-8].into_iter().fold(x, |x, part| y.mul_add(part, x));
    let z = x * x;
    let cosine = 2.443_315_7e-5f32.mul_add(z, -1.388_731_6e-3).mul_add(z, 4.166_664_6e-2) * z;
    let cosine = cosine.mul_add(z, -(z * 0.5)) + 1.0;
    let sine = (-1.951_529_6e-4f32).mul_add(z, 8.332_161e-3).mul_add(z, -1.666_665_5e-1) * z;
    let sine = sine.mul_add(x, x);
    let (sine, cosine) = if octant & 2 == 0 { (sine, cosine) } else { (cosine, sine) };
    (
        if octant & 4 == 0 { sine } else { -sine },
        if octant.wrapping_sub(2) & 4 == 0 { -cosine } else { cosine },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha256(bytes: &[u8]) -> String {
        hexadecimal(digest::digest(&digest::SHA256, bytes).as_ref())
    }

    #[test]
    fn noise_is_what_torch_draws() {
        // torch.randn(20, generator=torch.Generator().manual_seed(0))
        let found: Vec<u32> = noise(&uniforms(0, 36), 20).into_iter().map(f32::to_bits).collect();
        assert_eq!(found[..4], [0xbf90_1b85, 0xbf93_808a, 0xbe80_4bd6, 0xbede_255d]);
        assert_eq!(found[16..], [0x3f6e_8c30, 0x3fa1_2737, 0x4000_519a, 0x3d5c_1b3a]);
        // The same after torch.rand(1000) from the largest seed: every branch of the two functions.
        let numbers = uniforms(u32::MAX, 1000 + drawn(100_003));
        let bytes: Vec<u8> =
            noise(&numbers[1000..], 100_003).into_iter().flat_map(f32::to_le_bytes).collect();
        assert_eq!(sha256(&bytes), "a85a69e02f871131563a3542ea06b01f9c1ae53e7fb72b9220125e1546b800a3");
    }

    const SHA256: &str = "20608f66d951fb085c78abf4160f7a7aba2fd0bd19691b61a0c69a2d57ced0a7";

    /// With 40 values of seed 7 as `(1 + 0.3 * x).half()`, `(1.3 * x / 24**0.5).bfloat16()` and `.bfloat16().float()`.
    fn whole() -> String {
        let values = [
            r#"{"seed":7,"dtype":"f16","mul":0.3,"add":1}"#,
            r#"{"seed":7,"dtype":"bf16","mul":1.3,"div":4.8989797}"#,
            r#"{"seed":7,"dtype":"f32","mul":1.3,"div":4.8989797,"round":"bf16"}"#,
        ]
        .join(",");
        let parts = "[4,[0,0,40],[1,0,40],1,[2,0,40]]";
        format!(
            r#"{{"format":"fauna-seeded-1","length":325,"sha256":"{SHA256}","values":[{values}],"parts":{parts}}}"#
        )
    }

    fn file(header: &str, rest: &[u8]) -> Vec<u8> {
        [header.as_bytes(), b"\n", rest].concat()
    }

    #[test]
    fn literal_bytes_and_values_of_every_type_are_written_in_order() {
        let made = written_out(&file(&whole(), b"head!")).unwrap();
        assert_eq!((&made[..4], made[164], made.len()), (&b"head"[..], b'!', 325));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let refused = |from: &str, to: &str| {
            let header = whole();
            assert!(header.contains(from), "{from}");
            written_out(&file(&header.replacen(from, to, 1), b"head!")).unwrap_err()
        };
        let most = (MOST_BYTES + 1).to_string();
        for (from, to, problem) in [
            ("fauna-seeded-1", "fauna-seeded-2", "format is \"fauna-seeded-2\""),
            ("\"length\":325", "\"length\":324", "length is 324, the parts make 325 bytes"),
            ("\"length\":325", &format!("\"length\":{most}"), "at most"),
            ("\"length\":325", "\"length\":-1", "the first line"),
            ("2060", "2061", "expected \"2061"),
            ("\"seed\":7", "\"seed\":4294967296", "the first line"),
            ("\"seed\":7", "\"seed\":8", "SHA-256"),
            ("\"f16\"", "\"f64\"", "f64"),
            ("\"mul\":0.3", "\"times\":0.3", "times"),
            ("\"mul\":0.3", "\"mul\":1e99", "the first line"),
            ("4.8989797", "0", "values[1]: mul, div and add are finite"),
            ("[0,0,40]", "[3,0,40]", "parts[1]: values[3] is not there"),
            ("[0,0,40]", "[0,0,15]", "parts[1]: 15 values"),
            ("[0,0,40]", "[0,18446744073709551615,40]", "parts[1]: more than"),
            ("[0,0,40]", "[0,0,18446744073709551615]", "parts[1]: more than"),
            ("[0,0,40]", "[0,40]", "a part is a number of bytes"),
            ("\"parts\":[4", "\"parts\":[5", "the parts make 326"),
            ("\"parts\":[4,", "\"parts\":[4,18446744073709551615,", "the parts make"),
            ("],\"parts\"", "],\"more\":1,\"parts\"", "more"),
        ] {
            let found = refused(from, to);
            assert!(found.contains(problem), "{to}: {found}");
        }
        // Whatever one byte becomes, it is an answer.
        for at in 0..whole().len() {
            for byte in *b"9[]{},\"-e\n\xff" {
                let mut bytes = file(&whole(), b"head!");
                bytes[at] = byte;
                let _ = written_out(&bytes);
            }
        }
        for rest in [&b"head"[..], b"head!!", b""] {
            let found = written_out(&file(&whole(), rest)).unwrap_err();
            assert!(found.contains("the parts take 5 bytes from this file"), "{found}");
        }
        for bytes in [&b""[..], b"{}", b"{}\n", b"\n", b"\xff\n", b"[1]\n"] {
            assert!(written_out(bytes).is_err(), "{bytes:?}");
        }
        assert!(written_out(&vec![b' '; MOST_HEADER + 1]).unwrap_err().contains("no first line"));
    }

    #[test]
    fn a_folder_with_plain_files_is_itself() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), "x").unwrap();
        let checkpoint = ModelFolder::open(folder.path()).unwrap();
        assert_eq!(checkpoint.path(), folder.path());
        drop(checkpoint);
        assert!(folder.path().join("model.safetensors").is_file());
    }

    #[test]
    fn a_folder_with_seeds_is_written_out_beside_what_is_plain_and_removed_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("part")).unwrap();
        fs::write(folder.path().join("part/tiny.pt.seeded"), file(&whole(), b"head!")).unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let (one, other) =
            (ModelFolder::open(folder.path()).unwrap(), ModelFolder::open(folder.path()).unwrap());
        assert_ne!(one.path(), other.path());
        let place = one.path().to_path_buf();
        let mut files = Vec::new();
        files_below(&place, Path::new(""), &mut files).unwrap();
        files.sort();
        assert_eq!(files, [Path::new("config.json"), Path::new("part/tiny.pt")]);
        assert_eq!(sha256(&fs::read(place.join("part/tiny.pt")).unwrap()), SHA256);
        drop(one);
        assert!(!place.exists() && other.path().join("config.json").is_file());
    }

    #[test]
    fn an_error_names_the_file_and_leaves_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.pt.seeded");
        fs::write(&path, file(&whole(), b"head")).unwrap();
        let error = ModelFolder::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tiny.pt.seeded") && error.contains("follow the first line"), "{error}");
        fs::write(&path, file(&whole(), b"head!")).unwrap();
        fs::write(folder.path().join("tiny.pt"), "x").unwrap();
        let error = ModelFolder::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("also contains the file that it stands for"), "{error}");
    }
}
