//! Rust as words and signs: enough to find the types that a file defines, and what it imports.
//!
//! Macros are not expanded, so what only they define is not seen.

/// A word or sign of code. Comments, literals and lifetimes are none.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

pub(crate) fn is_word(sign: &char) -> bool {
    sign.is_alphanumeric() || *sign == '_'
}

/// How long what begins here is: a comment, a literal, a lifetime, a word, or one sign.
fn length(rest: &[char]) -> usize {
    let until = |from: usize, end: &str| {
        let end: Vec<char> = end.chars().collect();
        let found = rest[from..].windows(end.len()).position(|window| window == end);
        found.map_or(rest.len(), |at| from + at + end.len())
    };
    let word = |from: usize| from + rest[from..].iter().take_while(|sign| is_word(sign)).count();
    match rest {
        ['/', '/', ..] => rest.iter().take_while(|sign| **sign != '\n').count(),
        ['/', '*', ..] => until(2, "*/"),
        ['\'', '\\', _, ..] => until(3, "'"),
        ['\'', _, '\'', ..] => 3,
        ['\'', ..] => word(1),
        ['"', ..] => {
            let escaped = |at: usize| rest[..at].iter().rev().take_while(|s| **s == '\\').count();
            let ends = |at: &usize| rest[*at] == '"' && escaped(*at).is_multiple_of(2);
            (1..rest.len()).find(ends).map_or(rest.len(), |at| at + 1)
        }
        [sign, ..] if is_word(sign) => {
            let end = word(0);
            let hashes = rest[end..].iter().take_while(|sign| **sign == '#').count();
            let is_raw = matches!(rest[..end], ['r'] | ['b' | 'c', 'r'])
                && rest.get(end + hashes) == Some(&'"');
            if is_raw { until(end + hashes + 1, &format!("\"{}", "#".repeat(hashes))) } else { end }
        }
        _ => 1,
    }
}

pub(crate) fn tokens(code: &str) -> Vec<Token> {
    let signs: Vec<char> = code.chars().collect();
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while at < signs.len() {
        let piece = &signs[at..at + length(&signs[at..]).max(1)];
        let is_sign = piece.len() == 1 && !piece[0].is_whitespace();
        if is_sign || piece.iter().all(is_word) {
            tokens.push(Token { text: piece.iter().collect(), line });
        }
        line += piece.iter().filter(|sign| **sign == '\n').count();
        at += piece.len();
    }
    tokens
}

/// Code without the items that only tests have.
pub(crate) fn without_tests(mut rest: &[Token]) -> Vec<Token> {
    let (mut kept, mark) = (Vec::new(), ["#", "[", "cfg", "(", "test", ")", "]"]);
    while let [first, ..] = rest {
        let is_marked = rest.len() > mark.len() && rest.iter().zip(mark).all(|(t, m)| t.text == m);
        if is_marked {
            rest = after_item(&rest[mark.len()..]);
        } else {
            kept.push(first.clone());
            rest = &rest[1..];
        }
    }
    kept
}

/// What follows an item, a field or a variant.
fn after_item(tokens: &[Token]) -> &[Token] {
    let (mut depth, mut is_item) = (0, false);
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 0 => return &tokens[at..],
            ")" | "]" => depth -= 1,
            "}" => {
                depth -= 1;
                if depth == 0 {
                    return &tokens[at + 1..];
                }
            }
            ";" if depth == 0 => return &tokens[at + 1..],
            "," if depth == 0 && !is_item => return &tokens[at + 1..],
            "fn" | "impl" | "struct" | "enum" | "trait" | "type" | "const" => is_item = true,
            _ => {}
        }
    }
    &[]
}

/// For each token, the keyword of the block around it, if that is `impl` or `trait`, and how many
/// modules of the same file are around it.
pub(crate) fn surroundings(tokens: &[Token]) -> Vec<(&'static str, usize)> {
    let (mut blocks, mut next, mut before) = (vec![""], "", ";");
    let mut found = Vec::new();
    for token in tokens {
        match token.text.as_str() {
            "impl" if ["}", ";", "{", "]", "unsafe"].contains(&before) => next = "impl",
            "trait" => next = "trait",
            "mod" => next = "mod",
            ";" if next == "mod" => next = "",
            "{" => blocks.push(std::mem::take(&mut next)),
            "}" if blocks.len() > 1 => drop(blocks.pop()),
            _ => {}
        }
        let modules = blocks.iter().filter(|block| **block == "mod").count();
        found.push((*blocks.last().unwrap(), modules));
        before = &token.text;
    }
    found
}

/// The types that code defines, each with its line. Associated types are not among them.
pub(crate) fn definitions(tokens: &[Token]) -> Vec<(&str, usize)> {
    let mut found = Vec::new();
    for (pair, (block, _)) in tokens.windows(2).zip(surroundings(tokens)) {
        let is_type = match pair[0].text.as_str() {
            "struct" | "enum" | "trait" | "union" => true,
            "type" => !["impl", "trait"].contains(&block),
            _ => false,
        };
        if is_type && pair[1].text.starts_with(char::is_uppercase) {
            found.push((pair[1].text.as_str(), pair[1].line));
        }
    }
    found
}

/// The paths of a tree of imports: those of `a::{b, c::d as e}` are `a::b` and `a::c::d`.
pub(crate) fn leaves(tree: &[Token]) -> Vec<(Vec<&str>, usize)> {
    let (mut leaves, mut prefixes, mut path) = (Vec::new(), Vec::new(), Vec::new());
    let mut words = tree.iter();
    while let Some(Token { text, line }) = words.next() {
        match text.as_str() {
            "{" => prefixes.push(path.clone()),
            "," => path = prefixes.last().cloned().unwrap_or_default(),
            "}" => drop(prefixes.pop()),
            "as" => drop(words.next()),
            ":" => {}
            word => {
                path.push(word);
                let goes_on = words.as_slice().first().is_some_and(|next| next.text == ":");
                if !goes_on {
                    leaves.push((path.clone(), *line));
                }
            }
        }
    }
    leaves
}
