//! Run-length encoding of text: `aaab` is `3ab`.

use std::fmt;

/// Why a text cannot be decoded.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// A count with no character after it.
    TrailingCount,
    /// A count that is zero or does not fit.
    BadCount(String),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::TrailingCount => write!(out, "a count at the end has no character"),
            DecodeError::BadCount(count) => write!(out, "not a count: {count}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Encodes a text that has no digits of its own.
///
/// ```
/// assert_eq!(runlength::encode("aaab"), "3ab");
/// ```
pub fn encode(text: &str) -> String {
    let mut encoded = String::new();
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        let mut count = 1;
        while rest.next_if_eq(&character).is_some() {
            count += 1;
        }
        if count > 1 {
            encoded.push_str(&count.to_string());
        }
        encoded.push(character);
    }
    encoded
}

/// Decodes what [`encode`] made.
pub fn decode(encoded: &str) -> Result<String, DecodeError> {
    let mut text = String::new();
    let mut count = String::new();
    for character in encoded.chars() {
        if character.is_ascii_digit() {
            count.push(character);
            continue;
        }
        let times = match count.as_str() {
            "" => 1,
            digits => match digits.parse::<u32>() {
                Ok(times) if times > 0 => times,
                _ => return Err(DecodeError::BadCount(count)),
            },
        };
        text.extend(std::iter::repeat(character).take(times as usize));
        count.clear();
    }
    if count.is_empty() {
        Ok(text)
    } else {
        Err(DecodeError::TrailingCount)
    }
}
