//! What a command of Zenith's said, and whether it ended as it should.

use std::any::Any;
use std::process::{Command, Output};

/// What a panic said.
pub fn panicked(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic")
}

/// Runs a command to its end.
#[track_caller]
pub fn ended(command: &mut Command) -> Output {
    command.output().expect("started")
}

/// Its standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It exited with 0.
#[track_caller]
pub fn succeeds(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
}

/// It exited with 1, as one that failed and was used rightly, said all of `words`, and did not panic.
#[track_caller]
pub fn fails(output: &Output, words: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in words {
        assert!(text.contains(word), "no \"{word}\" in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}
