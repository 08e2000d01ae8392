use runlength::{decode, encode, DecodeError};

#[test]
fn what_is_encoded_can_be_decoded() {
    for text in ["", "a", "aaab", "abab", "ääää\n\n", "            ."] {
        assert_eq!(decode(&encode(text)).as_deref(), Ok(text));
    }
}

#[test]
fn runs_become_shorter() {
    assert_eq!(encode(&"x".repeat(1000)), "1000x");
}

#[test]
fn a_count_needs_a_character() {
    assert_eq!(decode("a3"), Err(DecodeError::TrailingCount));
}

#[test]
fn nothing_comes_zero_times() {
    assert_eq!(decode("0a"), Err(DecodeError::BadCount("0".into())));
}
