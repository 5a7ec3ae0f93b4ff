//! From histories to pages, in bounded memory: rows are read oldest first, some at a time, and every page is brought up to
//! the last of its rows before the next ones are read.

use crate::assemble::Build;
use crate::error::ReadError;
use crate::locate::Line;
use crate::snapshot::Snapshot;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use zenith_layers::{Key, LayerSet, Row, Span};
use zenith_pgformat::Lsn;
use zenith_redo::RedoError;

/// Rows of one key, and the pages that they are for: a copied database and its source may both be asked for.
struct Shared {
    span: Span,
    /// Positions among the pages, and from which LSN on each wants the rows.
    pages: Vec<(usize, Span)>,
}

/// Spans that are read together: scopes of one depth that count up to one LSN.
type Waves = BTreeMap<(Reverse<usize>, Lsn), BTreeMap<Key, Shared>>;

impl Snapshot {
    /// The pages of some histories, in their order, read from `layers`; `seen` is shown every row, each page's oldest first.
    ///
    /// Memory: the pages, and rows as [`crate::ReaderOptions::rows`] allows, twice for a moment: as they are read and as
    /// they are handed to redo. A history that is longer is redone in parts, on the page that the part before gave.
    pub(crate) async fn replay(
        &self,
        layers: &LayerSet,
        lines: &[Line],
        seen: &mut (dyn FnMut(&Row) + Send),
    ) -> Result<Vec<Build>, ReadError> {
        let timeline = &self.inner.timeline;
        let mut builds: Vec<Build> = lines.iter().map(|line| Build::new(line.key, line.begins)).collect();
        // Deeper scopes are older.
        for ((_, upto), shared) in waves(lines) {
            let mut spans: Vec<Span> = shared.values().map(|shared| shared.span).collect();
            while !spans.is_empty() {
                let chunk = layers.rows(&spans, upto, self.mode(upto), timeline.row_limit()).await?;
                for row in chunk.rows {
                    seen(&row);
                    let pages = shared.get(&row.key).map_or(&[][..], |shared| &shared.pages);
                    for (page, span) in pages {
                        if let Some(build) = builds.get_mut(*page).filter(|_| span.holds(row.lsn)) {
                            build.add(row.clone(), &self.inner.hints)?;
                        }
                    }
                }
                self.redo(&mut builds).await?;
                spans = chunk.rest;
            }
        }
        Ok(builds)
    }

    /// Applies what was added, in as few batches of redo as there are changes of settings inside one page's rows: one,
    /// as a rule.
    pub(crate) async fn redo(&self, builds: &mut [Build]) -> Result<(), ReadError> {
        loop {
            let (mut open, mut requests) = (Vec::new(), Vec::new());
            for build in builds.iter_mut() {
                if let Some(request) = build.next_request()? {
                    open.push(build);
                    requests.push(request);
                }
            }
            if requests.is_empty() {
                return Ok(());
            }
            let asked = requests.len();
            let timeline = &self.inner.timeline;
            let answers = timeline.redo().redo(timeline.clock(), requests).await?;
            if answers.len() != asked {
                let problem = format!("{asked} pages were asked for and {} came back", answers.len());
                return Err(ReadError::Interrupted(problem));
            }
            for (build, answer) in open.into_iter().zip(answers) {
                build.took(answer.map_err(|source| self.redo_error(build.key(), source))?);
            }
        }
    }

    fn redo_error(&self, key: Key, source: RedoError) -> ReadError {
        match source {
            RedoError::LostBase { lsn, .. } => ReadError::LostBase { key, lsn },
            source => ReadError::Redo { key, lsn: self.inner.lsn, source },
        }
    }
}

fn waves(lines: &[Line]) -> Waves {
    let mut waves = Waves::new();
    for (page, line) in lines.iter().enumerate() {
        for part in &line.parts {
            let wave = waves.entry((Reverse(part.depth), part.upto)).or_default();
            let shared = wave.entry(part.span.key);
            let shared = shared.or_insert_with(|| Shared { span: part.span, pages: Vec::new() });
            shared.span.from = shared.span.from.min(part.span.from);
            shared.span.upto = shared.span.upto.max(part.span.upto);
            shared.pages.push((page, part.span));
        }
    }
    waves
}
