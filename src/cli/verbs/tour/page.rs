//! The page of the tour: one HTML file with all pictures and sounds in it.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fauna::{Error, Result, builtin};

use super::stops::{Kind, Stop};
use super::{Done, Outcome};

/// How a page begins, by which a later tour recognizes it.
pub const START: &str = "<!DOCTYPE html>\n<!-- fauna tour -->\n";

const HEAD: &str = include_str!("../../../../assets/tour/head.html");

/// Number of lines of a command's output that are shown.
const SHOWN: usize = 24;

/// The page in the making.
#[derive(Default)]
pub struct Page {
    contents: String,
    stops: String,
}

impl Page {
    /// Adds what became of a stop whose files are in `folder`.
    ///
    /// # Errors
    /// A file that a command should have written and that cannot be read.
    pub fn add(&mut self, stop: &Stop, outcome: &Outcome, folder: &Path) -> Result<()> {
        let Stop { name, title, about, .. } = stop;
        self.contents += &format!("<a href=\"#{name}\">{title}</a>\n");
        self.stops += &format!("<section id=\"{name}\">\n<h2>{title}</h2>\n<p>{}</p>\n", escaped(about));
        self.models(stop);
        match outcome {
            Outcome::Skipped(why) => {
                self.stops += &format!("<p class=\"note\">Skipped: {}</p>\n", escaped(why))
            }
            Outcome::Ran(ran) => ran.iter().try_for_each(|done| self.command(done, folder))?,
        }
        self.stops += &format!(
            "<p class=\"release\">With a release of full size: <code>{}</code></p>\n</section>\n",
            escaped(stop.release)
        );
        Ok(())
    }

    /// The models of a stop, each with its figures.
    fn models(&mut self, stop: &Stop) {
        self.stops += "<ul class=\"models\">\n";
        for model in stop.models.iter().filter_map(|name| builtin::find(name)) {
            self.stops += &format!(
                "<li><b>{}</b> ({}, {:.1} MB)",
                model.name,
                escaped(model.system),
                model.size() as f64 / 1e6
            );
            let figures = model.figures();
            let mut told = figures
                .iter()
                .filter(|figure| figure.goal.is_some())
                .map(|figure| escaped(&figure.to_string()));
            if let Some(first) = told.next() {
                self.stops += &format!(": {first}");
                told.for_each(|figure| self.stops += &format!("; {figure}"));
            }
            self.stops += "</li>\n";
        }
        self.stops += "</ul>\n";
    }

    fn command(&mut self, done: &Done, folder: &Path) -> Result<()> {
        let Done { step, output, error, time } = done;
        self.stops += &format!(
            "<div class=\"command\"><code>{}</code><span>{:.1} s</span></div>\n",
            escaped(&step.command()),
            time.as_secs_f64()
        );
        if let Some(error) = error {
            self.stops += &format!("<pre class=\"error\">{}</pre>\n", escaped(error));
            return Ok(());
        }
        if step.shows_output && !output.is_empty() {
            let lines: Vec<&str> = output.lines().collect();
            let mut text = lines[..lines.len().min(SHOWN)].join("\n");
            if lines.len() > SHOWN {
                // A write to a String cannot fail.
                let _ = write!(text, "\n… {} more lines", lines.len() - SHOWN);
            }
            self.stops += &format!("<pre>{}</pre>\n", escaped(&text));
        }
        let media = step.media.iter().filter(|(kind, ..)| *kind != Kind::Data);
        let media = media.map(|(kind, name, caption)| medium(*kind, &folder.join(name), caption));
        let media: Vec<String> = media.collect::<Result<_>>()?;
        if !media.is_empty() {
            self.stops += &format!("<div class=\"media\">\n{}</div>\n", media.concat());
        }
        Ok(())
    }

    /// The whole page, of a tour that took `time`.
    pub fn finish(self, time: Duration) -> String {
        format!(
            "{START}{HEAD}<nav>\n{}</nav>\n{}<footer>fauna {}, {:.0} s in all, {} threads. The pictures, sounds and texts on \
             this page were made by the commands beside them.</footer>\n</main>\n</body>\n</html>\n",
            self.contents,
            self.stops,
            env!("CARGO_PKG_VERSION"),
            time.as_secs_f64(),
            std::thread::available_parallelism().map_or(1, usize::from),
        )
    }
}

/// A picture or a sound, with its bytes in the page.
fn medium(kind: Kind, path: &Path, caption: &str) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let (data, caption) = (STANDARD.encode(bytes), escaped(caption));
    let caption_below = format!("<figcaption>{caption}</figcaption></figure>\n");
    Ok(match kind {
        Kind::Picture | Kind::Small => {
            let format = if path.extension().is_some_and(|ending| ending == "gif") { "gif" } else { "png" };
            let small = if kind == Kind::Small { " class=\"small\"" } else { "" };
            format!(
                "<figure><img{small} src=\"data:image/{format};base64,{data}\" alt=\"{caption}\">{caption_below}"
            )
        }
        Kind::Sound => {
            format!("<figure><audio controls src=\"data:audio/wav;base64,{data}\"></audio>{caption_below}")
        }
        Kind::Data => String::new(),
    })
}

/// Text as HTML.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html += "&amp;",
            '<' => html += "&lt;",
            '>' => html += "&gt;",
            '"' => html += "&quot;",
            _ => html.push(character),
        }
    }
    html
}
