//! Plain text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fauna_shared::train::Example;
use fauna_shared::{Error, Result};

use crate::dataset::{Opened, Source};
use crate::options::{DatasetOptions, TextUnit};
use crate::table::{Lines, Place, read_at, utf8};

struct Plain {
    path: PathBuf,
    places: Vec<Place>,
    unit: TextUnit,
}

pub(crate) fn open(path: &Path, options: &DatasetOptions) -> Result<Opened> {
    options.check_columns("plain texts", &[])?;
    options.check_nothing_left_out("plain text")?;
    let mut places: Vec<Place> = Vec::new();
    let mut lines = Lines::open(path, options.max_line)?;
    // Whether the next line belongs to the last place.
    let mut continues = false;
    while let Some((place, bytes)) = lines.next_line()? {
        let text = std::str::from_utf8(bytes);
        let text = text.map_err(|_| {
            utf8(bytes.to_vec(), place.line, path).err().unwrap_or_else(|| Error::input("not UTF-8"))
        })?;
        let is_blank = text.trim_start_matches('\u{feff}').trim().is_empty();
        match (options.text_unit, places.last_mut()) {
            (TextUnit::Line, _) if !is_blank => places.push(place),
            (TextUnit::Line, _) => {}
            (TextUnit::Paragraph, _) if is_blank => continues = false,
            (_, Some(last)) if continues => last.length = place.offset + place.length - last.offset,
            _ => {
                places.push(place);
                continues = true;
            }
        }
    }
    let what = match options.text_unit {
        TextUnit::Line => "lines of text",
        TextUnit::Paragraph => "paragraphs of text",
        TextUnit::Document => "texts",
    };
    let source = Plain { path: path.to_path_buf(), places, unit: options.text_unit };
    if options.text_unit == TextUnit::Document && source.text(0).is_ok_and(|text| text.trim().is_empty()) {
        return Err(Error::input("the text is empty"));
    }
    Ok(Opened { source: Arc::new(source), what, classes: BTreeMap::new(), targets: None, notes: Vec::new() })
}

impl Plain {
    fn text(&self, index: usize) -> Result<String> {
        let Some(place) = self.places.get(index) else { return Ok(String::new()) };
        let text = utf8(read_at(&self.path, *place)?, place.line, &self.path)?;
        let text = match place.offset {
            0 => text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text),
            _ => text,
        };
        Ok(match self.unit {
            TextUnit::Document => text,
            _ => text.trim_end_matches(['\n', '\r']).to_string(),
        })
    }
}

impl Source for Plain {
    fn len(&self) -> usize {
        self.places.len()
    }

    fn get(&self, index: usize) -> Result<Example> {
        self.text(index).map(Example::Text)
    }
}
