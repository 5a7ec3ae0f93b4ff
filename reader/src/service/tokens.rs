//! Tokens: the passwords of clients that come over the network, and what each of them opens (docs/page-service.md).

use super::source::Source;
use crate::error::ReadError;
use crate::meaning::Meaning;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use std::collections::HashMap;
use std::fmt;
use zenith_store::TimelineId;

/// A token's shortest and longest length in bytes: nobody guesses 32 random characters.
const LENGTH: std::ops::RangeInclusive<usize> = 32..=512;
/// Tokens that a file may hold, those of other clusters included.
const TOKENS: usize = 10_000;

/// What a client may read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Every timeline of the service's cluster.
    Cluster,
    /// One timeline: the one with that id, else of that name.
    Timeline(String),
}

/// Why a client is not given a timeline.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// Its token is for another one. Whether the one that it asked for exists is not told.
    #[error("this token opens timeline \"{0}\" only: ask for that one, or use a token that opens others")]
    Scope(String),
    /// The one that its token is for is not there.
    #[error("timeline \"{0}\", which this token opens, is not there: use a token that opens another")]
    Gone(String),
    /// The timeline cannot be found.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// The tokens that one cluster's service takes. What is kept are their SHA-256 sums.
#[derive(Clone)]
pub struct Tokens(Vec<([u8; SHA256_OUTPUT_LEN], Scope)>);

/// A file of tokens that cannot be used. No message repeats a token.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadTokens {
    /// A line that is none.
    #[error("line {line}: {problem}; a line is TOKEN CLUSTER [TIMELINE]")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// One token cannot mean two things.
    #[error("line {line} repeats the token of line {earlier}: give every line a token of its own")]
    Repeated {
        /// Counted from 1.
        line: usize,
        /// The line that has it first.
        earlier: usize,
    },
    /// More than a file may hold.
    #[error("it holds more than {TOKENS} tokens: split it")]
    TooMany,
    /// Nobody could connect.
    #[error("it holds no token for cluster \"{0}\": add a line TOKEN {0} [TIMELINE]")]
    None(String),
}

impl Tokens {
    /// From a file's text: a line `TOKEN CLUSTER [TIMELINE]` for each; empty lines and those that begin with `#` mean nothing.
    /// Those of other clusters than `cluster` are left out, and are as wrong as any other.
    ///
    /// # Errors
    /// What is wrong with the first line that is, or that none is left.
    pub fn parse(text: &str, cluster: &str) -> Result<Tokens, BadTokens> {
        let (mut tokens, mut seen) = (Vec::new(), HashMap::new());
        for (line, text) in (1..).zip(text.lines()) {
            let bad = |problem| BadTokens::Line { line, problem };
            let words: Vec<&str> = text.split_ascii_whitespace().collect();
            let (token, of, scope) = match words.as_slice() {
                [] => continue,
                [word, ..] if word.starts_with('#') => continue,
                [token, of] => (token, of, Scope::Cluster),
                [token, of, timeline] => (token, of, Scope::Timeline((*timeline).to_owned())),
                [_] => return Err(bad("it names no cluster")),
                _ => return Err(bad("it has more than three words")),
            };
            if !LENGTH.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(bad(
                    "its token is not 32 to 512 printable ASCII characters, as openssl rand -hex 32 \
                                makes them",
                ));
            }
            if seen.len() == TOKENS {
                return Err(BadTokens::TooMany);
            }
            let sum = sum(token.as_bytes());
            if let Some(earlier) = seen.insert(sum, line) {
                return Err(BadTokens::Repeated { line, earlier });
            }
            if *of == cluster {
                tokens.push((sum, scope));
            }
        }
        if tokens.is_empty() {
            return Err(BadTokens::None(cluster.to_owned()));
        }
        Ok(Tokens(tokens))
    }

    /// What a password opens; `None`: it is no token. How long that takes tells nothing of the tokens.
    pub fn scope(&self, password: &[u8]) -> Option<Scope> {
        let given = sum(password);
        let mut found = None;
        // All of them, whichever it is; of what is compared only sums could be told.
        for (sum, scope) in &self.0 {
            if verify_slices_are_equal(sum, &given).is_ok() {
                found = Some(scope);
            }
        }
        found.cloned()
    }
}

/// Without the tokens.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

fn sum(bytes: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut sum = [0; SHA256_OUTPUT_LEN];
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

impl Scope {
    /// The timeline that a client asks for, if it may read that one.
    pub(super) async fn find(&self, source: &Source, asked: &str) -> Result<TimelineId, Denied> {
        let Scope::Timeline(own) = self else { return Ok(source.find(asked).await?) };
        // An error about a name lists the others, which are not this client's to know.
        let id = source.find(own).await.map_err(|error| match error.meaning() {
            Meaning::NotThere => Denied::Gone(own.clone()),
            _ => Denied::Read(error),
        })?;
        if own == asked {
            return Ok(id);
        }
        match source.find(asked).await {
            Ok(found) if found == id => Ok(id),
            Err(error) if error.meaning() == Meaning::MayPass => Err(error.into()),
            _ => Err(Denied::Scope(own.clone())),
        }
    }

    /// Whether a timeline that has a name is one that the client may hear of.
    pub(super) fn shows(&self, name: &str, id: TimelineId) -> bool {
        match self {
            Scope::Cluster => true,
            Scope::Timeline(own) => own == name || own.parse() == Ok(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: &str = "1111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222";
    const THREE: &str = "3333333333333333333333333333333333333333";

    #[test]
    fn a_token_opens_what_its_line_says_and_those_of_other_clusters_open_nothing() {
        let text = format!("# ours\n\n{ONE} main\n  {TWO}\tmain  test \n{THREE} other\n");
        let tokens = Tokens::parse(&text, "main").unwrap();
        assert_eq!(tokens.scope(ONE.as_bytes()), Some(Scope::Cluster));
        assert_eq!(tokens.scope(TWO.as_bytes()), Some(Scope::Timeline("test".to_owned())));
        for wrong in [THREE, "", &ONE[1..], &format!("{ONE}1")] {
            assert_eq!(tokens.scope(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(format!("{tokens:?}"), "2 tokens");
    }

    #[test]
    fn what_is_no_file_of_tokens_is_refused_by_its_line_and_without_the_token() {
        let refused = |text: &str| {
            let message = Tokens::parse(text, "main").unwrap_err().to_string();
            assert!(!message.contains("111"), "{message}");
            message
        };
        assert!(refused(ONE).contains("line 1: it names no cluster"));
        assert!(refused(&format!("\n{ONE} main a b")).contains("line 2"));
        assert!(refused("111 main").contains("openssl rand"));
        assert!(refused(&format!("{ONE}é main")).contains("ASCII"));
        assert!(refused(&format!("{ONE} main\n{TWO} main\n{ONE} other")).contains("line 3 repeats"));
        assert!(refused(&format!("{ONE} other")).contains("no token for cluster \"main\""));
        assert!(refused("").contains("no token"));
        let many: String = (0..=TOKENS).map(|number| format!("{number:040} main\n")).collect();
        assert_eq!(Tokens::parse(&many, "main").unwrap_err(), BadTokens::TooMany);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*", password in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(tokens) = Tokens::parse(&text, "main") {
                let _ = tokens.scope(&password);
            }
        }
    }
}
