//! The options that every command takes, and what they come to.

use super::config::{self, ConfigFile};
use super::exit::Usage;
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::PathBuf;
use zenith_store::TimelineId;

/// Text that every command's `--help` ends with.
pub const SOURCES: &str = "\
Options beat environment variables, which beat the configuration file (--config, else ZENITH_CONFIG, else
/etc/zenith/zenith.toml). Credentials come from the file's [credentials], else from each cloud's usual environment
variables (AWS_..., AZURE_..., GOOGLE_...): archive_command inherits the environment that PostgreSQL was started
with, while the file is read anew by every process, so that changing a key there needs no restart. RUST_LOG=info
(or debug) logs to standard error.

Exit status: 0 done, 1 failed, 2 wrong usage.";

/// Where history lies, and which of it is meant.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Store")]
pub struct StoreOptions {
    /// The store: file:///dir, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix
    #[arg(long, env = "ZENITH_STORE", hide_env_values = true, value_name = "URL", global = true)]
    pub store: Option<String>,

    /// Which cluster in the store [default: main]
    #[arg(long, env = "ZENITH_CLUSTER", hide_env_values = true, value_name = "NAME", global = true)]
    pub cluster: Option<String>,

    /// Which of Zenith's timelines, by name [default: main]
    #[arg(long, env = "ZENITH_TIMELINE", hide_env_values = true, value_name = "NAME", global = true)]
    pub timeline: Option<String>,

    /// Which timeline, by the id that never changes; beats --timeline
    #[arg(long, value_name = "ID", global = true)]
    pub timeline_id: Option<String>,

    /// Configuration file [default: /etc/zenith/zenith.toml, if it is there]
    #[arg(long, env = "ZENITH_CONFIG", hide_env_values = true, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// Which timeline is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimelineChoice {
    /// By name.
    Name(String),
    /// By id.
    Id(TimelineId),
}

impl std::fmt::Display for TimelineChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TimelineChoice::Name(name) => write!(f, "timeline \"{name}\""),
            TimelineChoice::Id(id) => write!(f, "timeline {id}"),
        }
    }
}

/// What options, environment and configuration file come to.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// The store's URL.
    pub store: String,
    /// Cluster.
    pub cluster: String,
    /// Timeline.
    pub timeline: TimelineChoice,
    /// Settings of the store's client from the configuration file, object_store's names.
    pub credentials: BTreeMap<String, String>,
    /// The cluster was named, and not left to its default.
    pub cluster_given: bool,
    /// The timeline was named, and not left to its default.
    pub timeline_given: bool,
    /// The configuration file, if it was named.
    pub config: Option<PathBuf>,
    /// Results are wanted as JSON.
    pub json: bool,
    /// Run as root: the user that a new folder store is for, if it was named.
    pub owner: Option<String>,
}

impl Settings {
    /// The same, for another timeline.
    #[must_use]
    pub fn with_timeline(&self, name: &str) -> Settings {
        Settings { timeline: TimelineChoice::Name(name.to_owned()), timeline_given: true, ..self.clone() }
    }
}

/// Without the credentials' values.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("store", &self.store)
            .field("cluster", &self.cluster)
            .field("timeline", &self.timeline)
            .field("credentials", &self.credentials.keys())
            .finish_non_exhaustive()
    }
}

impl StoreOptions {
    /// Reads the configuration file and settles every option.
    pub fn resolve(&self) -> anyhow::Result<Settings> {
        let file = config::read(self.config.as_deref())?;
        self.merge(file)
    }

    /// Settles every option against a configuration file that was read.
    pub fn merge(&self, file: ConfigFile) -> anyhow::Result<Settings> {
        let store = given(&self.store).or(file.store).ok_or_else(|| {
            Usage(
                "no store is named: give --store URL, set ZENITH_STORE, or put store = \"URL\" into \
                 /etc/zenith/zenith.toml"
                    .to_owned(),
            )
        })?;
        let named = match (given(&self.timeline_id), given(&self.timeline), file.timeline_id) {
            (Some(id), _, _) => Some(TimelineChoice::Id(timeline_id(&id)?)),
            (None, Some(name), _) => Some(TimelineChoice::Name(name)),
            (None, None, Some(id)) => Some(TimelineChoice::Id(timeline_id(&id)?)),
            (None, None, None) => file.timeline.map(TimelineChoice::Name),
        };
        let cluster = given(&self.cluster).or(file.cluster);
        Ok(Settings {
            store,
            cluster_given: cluster.is_some(),
            timeline_given: named.is_some(),
            cluster: cluster.unwrap_or_else(|| "main".to_owned()),
            timeline: named.unwrap_or_else(|| TimelineChoice::Name("main".to_owned())),
            credentials: file.credentials,
            config: self.config.clone().filter(|path| !path.as_os_str().is_empty()),
            json: self.json,
            owner: None,
        })
    }
}

/// An empty variable means an unset one.
fn given(option: &Option<String>) -> Option<String> {
    option.clone().filter(|text| !text.is_empty())
}

fn timeline_id(text: &str) -> anyhow::Result<TimelineId> {
    text.parse()
        .map_err(|_| Usage(format!("\"{text}\" is not a timeline id: zenith status shows them")))
        .context("--timeline-id")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(store: Option<&str>, timeline: Option<&str>) -> StoreOptions {
        StoreOptions {
            store: store.map(str::to_owned),
            timeline: timeline.map(str::to_owned),
            ..StoreOptions::default()
        }
    }

    fn file() -> ConfigFile {
        config::parse("store = 'file:///from-file'\ncluster = 'c'\ntimeline = 't'").expect("valid")
    }

    #[test]
    fn options_beat_the_configuration_file() {
        let settings = options(Some("file:///given"), Some("x")).merge(file()).expect("complete");
        assert_eq!(settings.store, "file:///given");
        assert_eq!(settings.timeline, TimelineChoice::Name("x".to_owned()));
        assert_eq!(settings.cluster, "c");
    }

    #[test]
    fn the_file_fills_what_is_not_given_and_defaults_fill_the_rest() {
        let settings = options(None, None).merge(file()).expect("complete");
        assert_eq!(settings.store, "file:///from-file");
        assert_eq!(settings.timeline, TimelineChoice::Name("t".to_owned()));
        let settings = options(Some("file:///x"), Some("")).merge(ConfigFile::default()).expect("complete");
        assert_eq!(settings.timeline, TimelineChoice::Name("main".to_owned()));
        assert_eq!(settings.cluster, "main");
    }

    #[test]
    fn an_id_beats_a_name_that_the_environment_holds() {
        let mut with_id = options(Some("file:///x"), Some("main"));
        with_id.timeline_id = Some("0193b5a4c3f07d5e8a2b1c4d5e6f7a8b".to_owned());
        let settings = with_id.merge(file()).expect("complete");
        assert!(matches!(settings.timeline, TimelineChoice::Id(_)));
    }

    #[test]
    fn a_missing_store_and_a_malformed_id_are_wrong_usage() {
        let error = options(None, None).merge(ConfigFile::default()).expect_err("no store");
        assert!(error.downcast_ref::<Usage>().is_some());
        let mut bad = options(Some("file:///x"), None);
        bad.timeline_id = Some("main".to_owned());
        let error = bad.merge(ConfigFile::default()).expect_err("no id");
        assert!(error.downcast_ref::<Usage>().is_some());
    }

    #[test]
    fn credentials_are_not_printed() {
        let file = config::parse("store = 'file:///x'\n[credentials]\naws_secret_access_key = 'hush'");
        let settings = options(None, None).merge(file.expect("valid")).expect("complete");
        assert!(!format!("{settings:?}").contains("hush"));
    }
}
