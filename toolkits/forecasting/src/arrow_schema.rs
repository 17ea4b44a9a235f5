//! Arrow types of the columns of a Parquet file that Parquet does not have: time zones, durations, extension types.
//!
//! The key `ARROW:schema` of the file holds, in base64, a message of Arrow's IPC format: eight bytes, then a flatbuffer
//! (`Message.fbs` and `Schema.fbs` of Apache Arrow's format, version 1.5).

use std::collections::HashMap;

use base64::Engine;

/// The Arrow type of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ArrowType {
    /// Timestamps of this time zone.
    Zone(String),
    /// Durations.
    Duration,
    /// An extension type: its name and metadata.
    Extension(String, String),
}

/// Maximum number of columns; a schema that claims more is cut.
const MAX_COLUMNS: usize = 100_000;

/// The types that the base64 text `schema` holds, by the names of the columns; empty if it is not a schema.
pub(crate) fn columns(schema: &str) -> HashMap<String, ArrowType> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(schema.trim()).unwrap_or_default();
    parse(&bytes).unwrap_or_default()
}

fn parse(bytes: &[u8]) -> Option<HashMap<String, ArrowType>> {
    // Messages of versions before 0.15 have no continuation marker.
    let bytes = if bytes.starts_with(&[0xff; 4]) { bytes.get(8..)? } else { bytes.get(4..)? };
    let message = FlatBuffer { bytes, at: 0 }.follow()?;
    let fields = message.field(2)?.follow()?.field(1)?.follow()?;
    let mut types = HashMap::new();
    for index in 0..fields.length()?.min(MAX_COLUMNS) {
        let field = fields.element(index)?.follow()?;
        if let (Some(name), Some(what)) = (field.text(0), field_type(&field)) {
            types.insert(name, what);
        }
    }
    Some(types)
}

/// Type ids of `Schema.fbs`.
const TIMESTAMP: u8 = 10;
const DURATION: u8 = 18;

fn field_type(field: &FlatBuffer) -> Option<ArrowType> {
    let (mut name, mut about) = (None, String::new());
    if let Some(pairs) = field.field(6).and_then(|part| part.follow()) {
        for index in 0..pairs.length()?.min(MAX_COLUMNS) {
            let pair = pairs.element(index)?.follow()?;
            match pair.text(0).as_deref() {
                Some("ARROW:extension:name") => name = pair.text(1),
                Some("ARROW:extension:metadata") => about = pair.text(1).unwrap_or_default(),
                _ => {}
            }
        }
    }
    if let Some(name) = name {
        return Some(ArrowType::Extension(name, about));
    }
    let kind = field.field(2)?;
    match *kind.bytes.get(kind.at)? {
        TIMESTAMP => field.field(3)?.follow()?.text(1).filter(|zone| !zone.is_empty()).map(ArrowType::Zone),
        DURATION => Some(ArrowType::Duration),
        _ => None,
    }
}

/// A position in a flatbuffer.
struct FlatBuffer<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> FlatBuffer<'a> {
    fn number<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn long(&self, at: usize) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(self.number(at)?)).ok()
    }

    fn to(&self, at: usize) -> Option<Self> {
        (at < self.bytes.len()).then_some(Self { bytes: self.bytes, at })
    }

    /// Follows the offset at this position.
    fn follow(&self) -> Option<Self> {
        self.to(self.at.checked_add(self.long(self.at)?)?)
    }

    /// Field `index` of the table at this position.
    fn field(&self, index: usize) -> Option<Self> {
        let back = i32::from_le_bytes(self.number(self.at)?);
        let names = usize::try_from(i64::try_from(self.at).ok()? - i64::from(back)).ok()?;
        let size = usize::from(u16::from_le_bytes(self.number(names)?));
        let entry = 4 + 2 * index;
        let offset = u16::from_le_bytes(self.number(names.checked_add(entry)?)?);
        (entry < size && offset > 0).then(|| self.to(self.at + usize::from(offset)))?
    }

    /// Number of elements of the vector at this position.
    fn length(&self) -> Option<usize> {
        self.long(self.at)
    }

    /// Element `index` of the vector of offsets at this position.
    fn element(&self, index: usize) -> Option<Self> {
        self.to(self.at.checked_add(4 + 4 * index)?)
    }

    /// The string in field `index` of the table at this position.
    fn text(&self, index: usize) -> Option<String> {
        let text = self.field(index)?.follow()?;
        let start = text.at.checked_add(4)?;
        let bytes = text.bytes.get(start..start.checked_add(text.length()?)?)?;
        std::str::from_utf8(bytes).ok().map(str::to_string)
    }
}
