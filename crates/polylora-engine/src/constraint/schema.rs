//! Bounds on JSON schemas, which come from outside.
//!
//! llguidance bounds its own work at most places. These are the places where it does not: a schema
//! of a few kilobytes could keep it busy for minutes. What stays within these bounds is compiled
//! within some seconds, nearly always within milliseconds.

use serde_json::Value;

/// Time grows with the square of the members of one object.
const MOST_MEMBERS: usize = 1000;
/// Values of any kind in the whole schema.
const MOST_VALUES: usize = 20_000;
/// An automaton for the multiples of n has n states (but for factors of ten), and that of several
/// `multipleOf` together has as many as their least common multiple.
const GREATEST_MULTIPLE: u64 = 10_000;

/// What makes the schema too expensive, if anything does.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    Seen { values: 0, multiple: 1 }.visit(schema)
}

struct Seen {
    values: usize,
    /// The least common multiple so far.
    multiple: u64,
}

impl Seen {
    fn visit(&mut self, value: &Value) -> Result<(), String> {
        self.values += 1;
        if self.values > MOST_VALUES {
            return Err(format!("it holds more than {MOST_VALUES} values"));
        }
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.visit(item)),
            Value::Object(members) => {
                if members.len() > MOST_MEMBERS {
                    return Err(format!(
                        "an object in it has {} members: at most {MOST_MEMBERS} are possible",
                        members.len()
                    ));
                }
                if let Some(of) = members.get("multipleOf").and_then(Value::as_f64) {
                    self.multiple = significant(of)
                        .and_then(|of| (self.multiple / gcd(self.multiple, of)).checked_mul(of))
                        .filter(|&multiple| multiple <= GREATEST_MULTIPLE)
                        .ok_or_else(|| {
                            format!(
                                "multipleOf {of}: beside powers of ten, the least common multiple \
                                 of all multipleOf may be at most {GREATEST_MULTIPLE}"
                            )
                        })?;
                }
                members.values().try_for_each(|member| self.visit(member))
            }
            _ => Ok(()),
        }
    }
}

/// The digits of a number as an integer, without the zeros around them; none if they are too many.
fn significant(number: f64) -> Option<u64> {
    let mut shifted = number.abs();
    while shifted.fract() != 0.0 && shifted < GREATEST_MULTIPLE as f64 {
        shifted *= 10.0;
    }
    // All integers up to here are exact in double precision.
    if shifted.fract() != 0.0 || shifted > (1u64 << 53) as f64 {
        return None;
    }
    let mut digits = shifted as u64;
    while digits > 0 && digits.is_multiple_of(10) {
        digits /= 10;
    }
    Some(digits.max(1))
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    #[test]
    fn ordinary_schemas_pass_and_expensive_ones_are_named() {
        let members = |n: usize| -> Value {
            (0..n).map(|i| (format!("p{i}"), json!({}))).collect::<Map<_, _>>().into()
        };
        let multiples = |of: &[f64]| json!({ "allOf": of.iter().map(|n| json!({ "multipleOf": n })).collect::<Vec<_>>() });
        for fine in [
            json!(true),
            json!({ "properties": { "multipleOf": { "type": "integer" } } }),
            json!({ "properties": members(MOST_MEMBERS) }),
            json!({ "enum": vec![0; 10_000] }),
            multiples(&[0.01, 1000.0, 60.0, 0.25, 1e9]),
            multiples(&[9999.0, 0.9999]),
            multiples(&[0.0]),
        ] {
            assert_eq!(check(&fine), Ok(()), "{fine}");
        }
        for (schema, named) in [
            (json!({ "properties": members(MOST_MEMBERS + 1) }), "1001 members"),
            (json!({ "enum": vec![0; MOST_VALUES] }), "20000 values"),
            (multiples(&[1_000_003.0]), "multipleOf 1000003"),
            (multiples(&[0.1234567]), "multipleOf 0.1234567"),
            (multiples(&[1e-300]), "multipleOf"),
            (multiples(&[997.0, 991.0]), "multipleOf 991"),
            (multiples(&[1e300]), "multipleOf"),
        ] {
            let reason = check(&schema).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
    }
}
