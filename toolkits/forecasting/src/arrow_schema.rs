//! What Arrow says of the columns of a Parquet file beyond Parquet's own types: zones, durations, extension types.
//!
//! The key `ARROW:schema` of the file holds, in base64, a message of Arrow's IPC format: eight bytes, then a flatbuffer
//! (`Message.fbs` and `Schema.fbs` of Apache Arrow's format, version 1.5).

use std::collections::HashMap;

use base64::Engine;

/// What is said of one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Points in time, shown as in this zone.
    Zone(String),
    /// Lengths of time.
    Duration,
    /// Values of a type that Arrow does not know: its name, and what it says of itself.
    Extension(String, String),
}

/// More columns than tables have; a schema that claims more is not believed.
const MOST_COLUMNS: usize = 100_000;

/// What `schema` says, by the names of the columns; nothing where it is no such schema.
pub(super) fn columns(schema: &str) -> HashMap<String, Said> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(schema.trim()).unwrap_or_default();
    read(&bytes).unwrap_or_default()
}

fn read(bytes: &[u8]) -> Option<HashMap<String, Said>> {
    // Messages before 0.15 have a length alone before them.
    let bytes = if bytes.starts_with(&[0xff; 4]) { bytes.get(8..)? } else { bytes.get(4..)? };
    let message = Part { bytes, at: 0 }.follow()?;
    let fields = message.field(2)?.follow()?.field(1)?.follow()?;
    let mut said = HashMap::new();
    for index in 0..fields.length()?.min(MOST_COLUMNS) {
        let field = fields.element(index)?.follow()?;
        if let (Some(name), Some(what)) = (field.text(0), of_field(&field)) {
            said.insert(name, what);
        }
    }
    Some(said)
}

/// The numbers of the types in `Schema.fbs`.
const TIMESTAMP: u8 = 10;
const DURATION: u8 = 18;

fn of_field(field: &Part) -> Option<Said> {
    let (mut name, mut about) = (None, String::new());
    if let Some(pairs) = field.field(6).and_then(|part| part.follow()) {
        for index in 0..pairs.length()?.min(MOST_COLUMNS) {
            let pair = pairs.element(index)?.follow()?;
            match pair.text(0).as_deref() {
                Some("ARROW:extension:name") => name = pair.text(1),
                Some("ARROW:extension:metadata") => about = pair.text(1).unwrap_or_default(),
                _ => {}
            }
        }
    }
    if let Some(name) = name {
        return Some(Said::Extension(name, about));
    }
    let kind = field.field(2)?;
    match *kind.bytes.get(kind.at)? {
        TIMESTAMP => field.field(3)?.follow()?.text(1).filter(|zone| !zone.is_empty()).map(Said::Zone),
        DURATION => Some(Said::Duration),
        _ => None,
    }
}

/// A place in a flatbuffer.
struct Part<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Part<'a> {
    fn number<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn long(&self, at: usize) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(self.number(at)?)).ok()
    }

    fn to(&self, at: usize) -> Option<Self> {
        (at < self.bytes.len()).then_some(Self { bytes: self.bytes, at })
    }

    /// Where the offset that stands here leads.
    fn follow(&self) -> Option<Self> {
        self.to(self.at.checked_add(self.long(self.at)?)?)
    }

    /// Field `index` of the table here.
    fn field(&self, index: usize) -> Option<Self> {
        let back = i32::from_le_bytes(self.number(self.at)?);
        let names = usize::try_from(i64::try_from(self.at).ok()? - i64::from(back)).ok()?;
        let size = usize::from(u16::from_le_bytes(self.number(names)?));
        let entry = 4 + 2 * index;
        let offset = u16::from_le_bytes(self.number(names.checked_add(entry)?)?);
        (entry < size && offset > 0).then(|| self.to(self.at + usize::from(offset)))?
    }

    /// Elements of the vector here.
    fn length(&self) -> Option<usize> {
        self.long(self.at)
    }

    /// Element `index` of the vector of offsets here.
    fn element(&self, index: usize) -> Option<Self> {
        self.to(self.at.checked_add(4 + 4 * index)?)
    }

    /// The text that field `index` of the table here leads to.
    fn text(&self, index: usize) -> Option<String> {
        let text = self.field(index)?.follow()?;
        let start = text.at.checked_add(4)?;
        let bytes = text.bytes.get(start..start.checked_add(text.length()?)?)?;
        std::str::from_utf8(bytes).ok().map(str::to_string)
    }
}
