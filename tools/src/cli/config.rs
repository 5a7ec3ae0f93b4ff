//! `zenith.toml`: read anew by every process.
//!
//! ```toml
//! store = "s3://bucket/prefix"
//! cluster = "main"
//! timeline = "main"
//! credentials_file = "/etc/zenith/credentials.toml"  # the same keys as [credentials]
//!
//! [credentials]            # object_store's names
//! aws_access_key_id = "..."
//! aws_secret_access_key = "..."
//! ```

use super::exit::Usage;
use anyhow::Context;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the file lies unless it is named.
pub const DEFAULT_PATH: &str = "/etc/zenith/zenith.toml";
/// More than any such file holds.
const MAX_BYTES: u64 = 1 << 20;

/// The file's contents. Unknown keys are refused: a mistyped one would be silently without effect.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The store's URL.
    pub store: Option<String>,
    /// Cluster.
    pub cluster: Option<String>,
    /// Timeline, by name.
    pub timeline: Option<String>,
    /// Timeline, by id.
    pub timeline_id: Option<String>,
    /// A file with the keys of `[credentials]`, which it may replace.
    pub credentials_file: Option<PathBuf>,
    /// Settings of the store's client, object_store's names.
    #[serde(default)]
    pub credentials: BTreeMap<String, String>,
}

/// Reads the file named, or the default one if it exists.
pub fn read(named: Option<&Path>) -> anyhow::Result<ConfigFile> {
    let named = named.filter(|path| !path.as_os_str().is_empty());
    let path = named.unwrap_or(Path::new(DEFAULT_PATH));
    let text = match read_text(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            return Ok(ConfigFile::default());
        }
        Err(error) => {
            return Err(error).with_context(|| {
                format!("configuration file {}: check that it exists and can be read", path.display())
            });
        }
    };
    let mut file = parse(&text).with_context(|| format!("configuration file {}", path.display()))?;
    if let Some(credentials) = &file.credentials_file {
        let text =
            read_text(credentials).with_context(|| format!("credentials file {}", credentials.display()))?;
        let more = parse_credentials(&text)
            .with_context(|| format!("credentials file {}", credentials.display()))?;
        file.credentials.extend(more);
    }
    Ok(file)
}

/// The whole of a small text file. A pipe is fine: it is how a shell hands over a secret.
fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        let reason = format!("it is longer than {MAX_BYTES} bytes, which no such file is");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
    }
    Ok(text)
}

/// Parses the file's text.
pub fn parse(text: &str) -> Result<ConfigFile, Usage> {
    toml::from_str(text).map_err(|error| Usage(without_secrets(&error)))
}

fn parse_credentials(text: &str) -> Result<BTreeMap<String, String>, Usage> {
    toml::from_str(text).map_err(|error| Usage(without_secrets(&error)))
}

/// The message without the line it quotes, which may hold a key.
fn without_secrets(error: &toml::de::Error) -> String {
    error.message().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let Usage(message) = parse("stroe = 'file:///x'").err().expect("refused");
        assert!(message.contains("stroe"), "{message}");
    }

    #[test]
    fn a_syntax_error_does_not_repeat_a_secret() {
        let Usage(message) = parse("[credentials]\naws_secret_access_key = hush").err().expect("refused");
        assert!(!message.contains("hush"), "{message}");
    }

    #[test]
    fn a_file_that_is_named_must_exist() {
        let folder = tempfile::tempdir().expect("folder");
        let missing = folder.path().join("zenith.toml");
        let error = read(Some(&missing)).err().expect("refused");
        assert!(error.to_string().contains("zenith.toml"), "{error}");
    }

    #[test]
    fn a_file_without_an_end_is_refused_by_name() {
        let error = read(Some(Path::new("/dev/zero"))).err().expect("refused");
        let text = format!("{error:#}");
        assert!(text.contains("/dev/zero") && text.contains("longer than"), "{text}");
    }

    #[test]
    fn credentials_may_lie_in_a_file_of_their_own() {
        let folder = tempfile::tempdir().expect("folder");
        let keys = folder.path().join("keys.toml");
        std::fs::write(&keys, "aws_access_key_id = 'a'").expect("written");
        let path = folder.path().join("zenith.toml");
        std::fs::write(&path, format!("credentials_file = {keys:?}")).expect("written");
        let file = read(Some(&path)).expect("valid");
        assert_eq!(file.credentials.get("aws_access_key_id").map(String::as_str), Some("a"));
    }
}
