use serde_json::{Value, json};

use super::*;

/// 29 February 2024, 12:34:56.
const NOW: u64 = 1_709_210_096;

fn variables() -> Vec<(&'static str, Value)> {
    vec![
        (
            "messages",
            json!([
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "Grüße, 'world' \"x\"\n2"},
            ]),
        ),
        ("tools", Value::Null),
        ("documents", Value::Null),
        ("add_generation_prompt", json!(true)),
        ("bos_token", json!("<s>")),
        ("eos_token", json!("</s>")),
        ("unk_token", json!("<unk>")),
        ("pad_token", json!("<pad>")),
    ]
}

fn render(source: &str) -> Res<String> {
    Template::new(source)?.render(&variables(), NOW)
}

/// Expected values of jinja2 in the environment of transformers; `null` where it raises.
#[test]
fn expressions_evaluate_as_in_jinja2() {
    let cases: Vec<(String, Option<String>)> =
        serde_json::from_str(include_str!("../../../tests/tokenizers/expressions.json")).unwrap();
    assert!(cases.len() > 150);
    let mut wrong = Vec::new();
    for (source, expected) in cases {
        match (render(&source), expected) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Err(_), None) => {}
            (found, expected) => wrong.push(format!("{source}\n found {found:?}\n expected {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

/// Each would take unbounded memory, time or depth.
#[test]
fn unbounded_templates_are_stopped() {
    let repeated = |part: &str, times: usize| part.repeat(times);
    let double = "{% set a = 'aaaaaaaaaaaaaaaa' %}";
    let many: Vec<String> = vec![
        "{{ 'x'|indent(9999999999) }}".into(),
        "{{ 'x'|indent('y' * 1000000) }}{{ ('x\n' * 1000000)|indent(1000000) }}".into(),
        double.to_string() + &repeated("{% set a = a ~ a %}", 40),
        double.to_string() + &repeated("{% set a = a + a %}", 40),
        double.to_string() + &repeated("{% set a = a.replace('a', 'aaaaaaaaaaaaaaaa') %}", 40),
        double.to_string() + &repeated("{% set a = a|replace('', a) %}", 40),
        double.to_string() + &repeated("{% set a = a|join(a) %}", 40),
        double.to_string() + &repeated("{% set a = a.join([a, a]) %}", 40),
        double.to_string() + &repeated("{% set a %}{{ a }}{{ a }}{% endset %}", 40),
        double.to_string() + &repeated("{% set a = '%s%s' % (a, a) %}", 40),
        double.to_string() + &repeated("{% set a = '{0}{0}'.format(a) %}", 40),
        double.to_string() + &repeated("{% set a = a|e|replace('a', '&&&&') %}", 40),
        double.to_string() + &repeated("{% set a = (a|tojson)|tojson %}", 40),
        double.to_string() + &repeated("{% set a = a|list %}{% set a = (a + a)|string %}", 40),
        "{% set a = [1] %}".to_string() + &repeated("{% set a = a + a %}", 40),
        "{% set a = [1] %}".to_string() + &repeated("{% set a = [a, a] %}", 40) + "{{ a }}",
        "{% set a = [1] %}".to_string() + &repeated("{% set a = [a, a] %}", 40) + "{{ a|tojson }}",
        "{% set a = [1] %}{% set b = [1] %}".to_string()
            + &repeated("{% set a = [a, a] %}{% set b = [b, b] %}", 40)
            + "{{ a == b }}{{ a < b }}",
        "{% set a = {'k': 1} %}".to_string() + &repeated("{% set a = {'x': a, 'y': a} %}", 40) + "{{ a }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}".into(),
        "{% set ns = namespace(x='b') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
            .into(),
        "{{ (range(99999)|list) * 99999 }}".into(),
        "{{ 'ab' * 9999999999 }}{{ [0] * 9999999999 }}".into(),
        "{{ 'x'.center(9999999999) }}".into(),
        "{{ 'x'.ljust(9999999999) }}".into(),
        "{{ 'x'.zfill(9999999999) }}".into(),
        "{{ 'x'|center(9999999999) }}".into(),
        "{{ '\t'.expandtabs(9999999999) }}".into(),
        "{{ '%99999999d' % 1 }}".into(),
        "{{ '%.9999999f' % 1.5 }}".into(),
        "{{ '{:>99999999}'.format(1) }}".into(),
        "{{ '{:{}}'.format(1, 9999999999) }}".into(),
        "{{ [1]|tojson(indent=9999999999) }}".into(),
        "{{ [1]|batch(9999999999, 'x') }}".into(),
        "{{ [1]|slice(9999999999) }}".into(),
        "{{ 9999999999 ** 9999999999 }}".into(),
        "{{ strftime_now('%999999999Y') }}".into(),
        "{% for i in range(99999) %}{% for i in range(99999) %}x{% endfor %}{% endfor %}".into(),
        "{% for i in range(9999) %}{{ (range(9999)|list)|sort|length }}{% endfor %}".into(),
        "{{ range(99999)|map('string')|unique|list|length }}".into(),
        "{% set ns = namespace(s='x' * 9999) %}{% for i in range(99999) %}{{ ns.s is in ns.s }}{% endfor %}"
            .into(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}".into(),
        "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}".into(),
        "{% if ".to_string() + &repeated("(", 5000) + "1" + &repeated(")", 5000) + " %}{% endif %}",
        "{{ ".to_string() + &repeated("[", 5000) + &repeated("]", 5000) + " }}",
        "{{ ".to_string() + &repeated("-", 5000) + "1 }}",
        "{{ ".to_string() + &repeated("1 if 1 else ", 5000) + "1 }}",
        "{{ ".to_string() + &repeated("1 if ", 5000) + "1 }}",
        "{{ ".to_string() + &repeated("a[", 5000) + "1" + &repeated("]", 5000) + " }}",
        "{{ 1 is ".to_string() + &repeated("eq 1 is ", 5000) + " }}",
        repeated("{% if 1 %}", 5000) + &repeated("{% endif %}", 5000),
        repeated("{% for i in [1] %}", 5000) + &repeated("{% endfor %}", 5000),
        repeated("{% set x %}", 5000) + &repeated("{% endset %}", 5000),
    ];
    for source in many {
        let fault = render(&source).expect_err(&source[..source.len().min(90)]);
        assert!(fault.cause != Cause::Raised && !fault.message.contains("internal error"), "{fault}");
    }
}

/// Long but not deeply nested templates are valid.
#[test]
fn long_chains_are_not_deep() {
    let row = |part: &str| format!("{{{{ {} }}}}", part.repeat(5000));
    assert_eq!(render(&row("not ").replace(" }}", " 1 }}")).unwrap(), "True");
    assert_eq!(render(&row("1 + ").replace(" + }}", " }}").replace("+  }}", "}}")).unwrap(), "5000");
    assert_eq!(render(&format!("{{{{ 'a'{} }}}}", "|upper".repeat(5000))).unwrap(), "A");
    assert_eq!(render(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(5000))).unwrap(), "");
    let or = format!("{{{{ {}1 }}}}", "0 or ".repeat(5000));
    assert_eq!(render(&or).unwrap(), "1");
}

/// Values that contain each other are dropped without deep recursion.
#[test]
fn namespaces_that_contain_each_other_are_dropped() {
    let chain =
        "{% set ns = namespace() %}{% for i in range(50000) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}";
    assert_eq!(render(chain).unwrap(), "");
    assert_eq!(render("{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x|length }}").unwrap(), "1");
}

/// The limit grows with the conversation.
#[test]
fn a_long_conversation_is_rendered() {
    let messages: Vec<Value> = (0..2000)
        .map(|i| json!({"role": "user", "content": format!("{i} {}", "word ".repeat(1000))}))
        .collect();
    let source = "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}\n{% endfor %}";
    let text = Template::new(source).unwrap().render(&[("messages", json!(messages))], NOW).unwrap();
    assert!(text.len() > 9_000_000);
}

#[test]
fn the_smallest_integer_is_handled() {
    let lowest = "(-9223372036854775807 - 1)";
    let value = |source: &str| render(&source.replace("LOW", lowest));
    assert_eq!(value("{{ '-1'.zfill(LOW) }}{{ 'ab'.ljust(LOW) }}{{ 'abc'[LOW:] }}").unwrap(), "-1ababc");
    assert_eq!(value("{{ 1.5|round(LOW) }} {{ [1, 2][LOW] is defined }}").unwrap(), "0.0 False");
    for source in ["{{ -LOW }}", "{{ LOW|abs }}", "{{ LOW // -1 }}", "{{ LOW % -1 }}", "{{ LOW - 1 }}"] {
        assert!(value(source).unwrap_err().message.contains("64 bits") || source.contains("abs"), "{source}");
    }
}
