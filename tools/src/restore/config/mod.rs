//! The configuration of a restored server: the old one's, without what cannot be right here.
//!
//! Debian keeps configuration outside the data directory: where the base image holds none, minimal files are written.
//! Everything that differs is listed, so that a person can decide about it.

mod files;
mod host;
mod parse;
mod rules;

pub use host::{Host, ThisHost};

use anyhow::{Result, bail};
use bytes::Bytes;
use files::{AUTO_FILE, Files, MAIN_FILE};
use parse::quote;
use rules::Judge;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use zenith_ingest::base::SmallFile;
use zenith_ingest::model::Parameters;

/// Longer files are not configuration.
const CONFIGURATION_MAX: usize = 1 << 20;

/// Something about the configuration that is not as it was.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Change {
    /// The setting, directive or file.
    pub setting: String,
    /// Its value before, if it had one.
    pub was: Option<String>,
    /// Its value now; `None` when its line was taken out.
    pub now: Option<String>,
    /// The reason.
    pub why: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.setting)?;
        match &self.now {
            Some(now) => write!(f, " = {}", quote(now))?,
            None => f.write_str(" taken out")?,
        }
        if let Some(was) = &self.was {
            write!(f, " (was {})", quote(was))?;
        }
        write!(f, ": {}", self.why)
    }
}

/// What the restored state needs of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Needs {
    /// The settings that the WAL tells.
    pub(crate) parameters: Parameters,
    /// How many transactions are prepared.
    pub(crate) prepared: usize,
    /// How many replication origins have progress.
    pub(crate) origins: usize,
    /// Whether there may be subscriptions.
    pub(crate) subscriptions: bool,
    /// The server's own `archive_command`, if it gets one.
    pub(crate) archive_command: Option<String>,
    /// What a server needs whose pages come as they are touched.
    pub(crate) lazy: Option<LazyNeeds>,
}

/// What a lazy compute needs until it has all of its pages.
#[derive(Clone, Debug)]
pub(crate) struct LazyNeeds {
    /// The extension's library.
    pub(crate) library: String,
    /// Whether the cluster has data checksums, so that hint bits are logged anyway.
    pub(crate) checksums: bool,
}

/// Turns the files kept from the base image into those of the restored server. Returns what changed.
pub(crate) fn rewrite(
    kept: &mut BTreeMap<String, SmallFile>,
    needs: &Needs,
    host: &dyn Host,
    mode: u32,
) -> Result<Vec<Change>> {
    if needs.archive_command.as_deref().is_some_and(|command| command.contains(['\n', '\r'])) {
        bail!("archive_command must be one line");
    }
    let mut changes = add_missing(kept, mode);
    // Any file may be included, whatever its name.
    let image = kept.iter().filter(|(_, file)| file.content.len() <= CONFIGURATION_MAX);
    let image: BTreeMap<String, String> = image
        .map(|(path, file)| (path.clone(), String::from_utf8_lossy(&file.content).into_owned()))
        .collect();
    let read = Files::read(&image);
    changes.extend(read.removed.iter().map(|(setting, was)| Change {
        setting: setting.clone(),
        was: Some(was.clone()),
        now: None,
        why: "it leads to the old server's files".to_owned(),
    }));
    let settled =
        Judge { settings: &read.settings, files: &|path| kept.contains_key(path), needs, host }.changes();
    let mut texts = read.texts;
    if !settled.is_empty() {
        append(texts.entry(AUTO_FILE.to_owned()).or_default(), &settled);
    }
    for (path, text) in texts {
        // A file that did not change keeps its bytes, whatever its encoding.
        if image.get(&path) != Some(&text) {
            let mode = kept.get(&path).map_or(mode, |file| file.mode);
            kept.insert(path, SmallFile { mode, content: Bytes::from(text) });
        }
    }
    changes.extend(settled);
    Ok(changes)
}

/// Lines for postgresql.auto.conf: it is read last, so that its last lines win.
fn append(text: &mut String, changes: &[Change]) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for Change { setting, now, .. } in changes {
        if let Some(now) = now {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{setting} = {}", quote(now));
        }
    }
}

/// Minimal files in place of those that the base image does not have.
fn add_missing(kept: &mut BTreeMap<String, SmallFile>, mode: u32) -> Vec<Change> {
    let files = [
        (MAIN_FILE, MINIMAL_CONF),
        (AUTO_FILE, ""),
        ("pg_hba.conf", MINIMAL_HBA),
        ("pg_ident.conf", MINIMAL_IDENT),
    ];
    let mut changes = Vec::new();
    for (path, text) in files {
        if kept.contains_key(path) {
            continue;
        }
        kept.insert(path.to_owned(), SmallFile { mode, content: Bytes::from_static(text.as_bytes()) });
        if path != AUTO_FILE {
            changes.push(Change {
                setting: path.to_owned(),
                was: None,
                now: Some("minimal".to_owned()),
                why: "the base image does not hold it: it lay outside the data directory".to_owned(),
            });
        }
    }
    changes
}

const MINIMAL_CONF: &str = "# Written by zenith_restore: the old server kept its configuration outside the data directory,\n\
    # so that the base image does not hold it. Limits that the data need are in postgresql.auto.conf.\n\
    # Put the settings that you want here.\n";

const MINIMAL_HBA: &str = "# Written by zenith_restore: the base image does not hold the old server's pg_hba.conf.\n\
    # TYPE  DATABASE        USER            ADDRESS                 METHOD\n\
    local   all             all                                     peer\n\
    host    all             all             127.0.0.1/32            scram-sha-256\n\
    host    all             all             ::1/128                 scram-sha-256\n\
    local   replication     all                                     peer\n";

const MINIMAL_IDENT: &str = "# MAPNAME       SYSTEM-USERNAME         PG-USERNAME\n";

#[cfg(test)]
mod tests;
