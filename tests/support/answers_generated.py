# ruff: noqa: E501 (tables)
r"""Answers made by rules: right ones in many spellings, and wrong ones that a trusting verifier takes for right.

A value has spellings that keep it; a decoration changes what it stands for; a joint puts another value beside it; a near miss is
another value that is close by. What is made of them is labelled by how it was made. `rewards_accuracy.py` judges a sample,
the tests draw from the same parts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

# Answers, each with other spellings of it.
VALUES: dict[str, tuple[str, ...]] = {
    "7": ("7.0", "+7", r"\left(7\right)", r"\frac{14}{2}", r"7\text{ cm}", r"\mathbf{7}", r"\text{7}", "\uff17", r"\color{red}{7}"),
    "-12": ("\u221212", "- 12", r"-\frac{24}{2}", "-12.00", r"-12\text{ m}", r"\boxed{-12}", r"$-12$", r"\(-12\)"),
    "1234567": ("1,234,567", r"1\,234\,567", r"1\ 234\ 567", "1~234~567", r"1\!234\!567", "1{,}234{,}567", "1 234 567"),
    "1000000": ("10^6", r"1\text{ million}", "1e6", r"1 \times 10^{6}", "1,000,000"),
    r"\frac{3}{4}": ("3/4", "0.75", r"\dfrac34", r"\frac 34", "\u00be", r"75\%", r"\frac{6}{8}", ".75", r"\left(\frac{3}{4}\right)"),
    r"\frac{1}{6}": (r"0.1\overline{6}", r"0.1\dot{6}", "1/6", r"\frac{1}{2}\cdot\frac13"),
    "2.5": (r"2\frac12", "5/2", "2 1/2", "2.50", r"\frac{5}{2}"),
    r"\sqrt{2}": ("\u221a2", "sqrt(2)", r"\sqrt2", "2^{1/2}", r"\frac{2}{\sqrt{2}}", r"2^{0.5}", r"\sqrt {2}"),
    r"2\sqrt{3}": (r"\sqrt{12}", "2\u221a3", "2*sqrt(3)", r"2 \cdot \sqrt{3}", r"2\,\sqrt{3}"),
    r"2\pi": ("2\u03c0", "2*pi", r"\pi \cdot 2", r"2 \pi", r"2\pi\text{ cm}"),
    "3+4i": ("4i+3", r"3+4\mathrm{i}", r"3 + 4 \cdot i", r"(2+i)^2"),
    r"50\%": ("50%", "0.5", r"50\text{ percent}", r"\frac{1}{2}", "50 percent"),
    "2^{100}": ("4^{50}", "2^100", "1267650600228229401496703205376"),
    "x^2+1": ("1+x^2", "x\u00b2+1", "x**2+1", r"x \cdot x + 1", "y = x^2 + 1", r"f(x) = x^2+1"),
    "2x+1": ("1+2x", r"2 \cdot x + 1", "y=2x+1", r"\frac{4x+2}{2}"),
    "e^{2x}": ("(e^x)^2", r"\exp(2x)", r"\mathrm{e}^{2x}"),
    r"\sin(2x)": (r"2\sin x\cos x", r"\sin 2x", "sin(2x)"),
    "y=2x+3": ("y = 3+2x", "2x-y+3=0", "2x+3", "2x+3=y"),
    "(1,2)": (r"\left(1, 2\right)", "(1, 2.0)", r"\begin{pmatrix}1\\2\end{pmatrix}", "\uff081\uff0c2\uff09"),
    "[1,2)": (r"1 \le x < 2", r"x \in [1,2)", r"\{x \mid 1 \leq x < 2\}", "2>x\u22651", "[1,2["),
    r"(-\infty,3]": (r"x \le 3", r"]-\infty,3]", r"3 \geq x", "(-\u221e, 3]"),
    r"\{1,2\}": (r"\{2, 1\}", "1, 2", r"\lbrace 1,2 \rbrace", r"1 \text{ and } 2", r"\left\{1,2\right\}"),
    "1,2,3": ("3, 2, 1", "1;2;3", r"1, 2 \text{ and } 3", r"\{1,2,3\}", "n=1,2,3"),
    r"(0,1)\cup(2,3)": (r"(2,3) \cup (0,1)", "(0,1)\u222a(2,3)"),
    "3:4": ("3 : 4", r"3\colon 4"),
    "11_2": ("11_{2}", "(11)_2", r"11_{\text{two}}"),
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}": (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]"),
    r"60^\circ": (r"60^{\circ}", "60\u00b0", r"60\text{ degrees}", "60", r"\frac{\pi}{3}"),
    r"\$3.50": ("3.50", r"\$3.5", r"3.50\text{ dollars}", r"350\text{ cents}"),
    r"5\text{ hours}": ("5", r"5\text{ h}", "5 hours", r"5\ \mathrm{hr}"),
    r"12\text{ km/h}": (r"12\text{ kilometers per hour}", r"12\frac{\text{km}}{\text{h}}", "12"),
    "C": ("(C)", r"\text{C}", r"\textbf{(C)}\ 42", "C. 42", "c", r"\text{Option C}"),
    "ABD": ("A, B, D", "A,B,D", r"\text{A, B and D}"),
    r"\text{Monday}": ("Monday", "monday", r"\textbf{Monday}"),
    "x=5": ("5", "x = 5", "5 = x"),
    r"x \ge 3": (r"[3,\infty)", r"3 \le x", "x>=3", r"2x \geq 6"),
}  # fmt: skip

# What is put around a value so that it stands for another, or for none; `@` is the value.
DECORATIONS = (
    "@'", r"@^\prime", "@^*", "{@}^{*}", r"@^\dagger", r"\ldots @", r"@\ldots", "@...", r"\phantom{@}", r"\hat{@}", r"\overline{@}",
    r"\tilde{@}", r"\vec{@}", r"\not @", r"\not{@}", r"\neg @", r"\cancel{@}", r"\overset{9}{@}", r"\underset{9}{@}",
    r"\stackrel{9}{@}", r"@\rfloor", r"\lceil @", r"\|@\|", "|@", "@|", "@)", "(@", r"@\}", r"\{@", "~@", r"\sim @", r"\approx @",
    "<@", ">@", r"\ne @", "@ =", "= @", "@!!", "@?", "@_3", r"@\%\%", r"@\text{ million}", r"@\text{ hundred}", r"@\text{ dozen}",
    r"@\text{ squared}", r"@\text{ plus one}", r"@\text{ base eight}", r"@\text{ }^2", r"@\text{}^3", r"@\mathrm{z}", r"@\,\mathrm{i}",
    r"@\text{ is false}", r"@\text{ excluded}", r"@\text{ is impossible}", r"\text{not }@", r"\text{about }@", r"\text{minus }@",
    r"@\text{ at most}", r"@\text{ per dozen}", r"@\text{ k}", "@ wrong", "@ (wrong)", r"@\bmod 9", r"@ \pmod 9", r"\Gamma(@)",
    r"\det @", r"\partial @", r"\emptyset @", r"\frac{@}{9}", r"99,@", r"@,99", r"@\\9", r"@&9", r"@\text{th}", "@\u200b", "\u202e@",
    "@\u0338", "@\x00", r"\frac{\boxed{@}}{9}", r"99,\boxed{@}", r"x\ne\boxed{@}", r"@\uparrow", r"@ \to 9", r"@\text{ or }9",
    r"@ \lor 9", r"@ # 9", r"@\text{ since }3<4", r"-@+z",
)  # fmt: skip

# Symbols of TeX and Unicode, and words, of which none makes one value of two.
JOINTS = tuple(
    (
        r"\lor \land \in \ni \gg \ll \cap \sim \simeq \cong \approx \approxeq \thickapprox \risingdotseq \fallingdotseq \doteq \equiv "
        r"\propto \asymp \bowtie \perp \parallel \mid \nmid \to \rightarrow \Rightarrow \iff \mapsto \dashrightarrow \oplus \otimes "
        r"\odot \bullet \star \dagger \sqcup \wr \triangleleft \P \S \forall \exists \therefore \ldots \cdots \ldotp \quad \setminus "
        r"\nless \ngtr \ngeq \lesssim \gtrsim \between \pitchfork \partial \nabla \aleph \square \natural \prime \top \not \bmod "
        r"\text{if} \text{not} \text{vs} \text{then} \text{is} \choose \atop \over # & | \| \\ \$ $ ? @ ; \u200b \u202e \u0338 \u2227 "
        "\u2228 \u2192 \u21d2 \u2248 \u2016 // ~~ := => -> <> == !="
    ).split()
)

# Pairs that are not equal, and look it: to double precision, to six digits, in the absolute, or to a reader.
NEAR = (
    ("7", "7.0000000000000000000001"), ("7", "7+2^{-300}"), ("0", "e^{-180}"), ("0", r"\frac{1}{25!}"), ("1", r"\tanh(200)"),
    (r"\frac{1}{2^{2019}}", r"\frac{1}{2^{2020}}"), (r"\frac{1}{30!}", r"\frac{1}{31!}"), (r"\left(\frac{5}{6}\right)^{401}", "0"),
    (r"\left(\frac{5}{6}\right)^{401}", r"\left(\frac{5}{6}\right)^{400}"), (r"\sqrt{10^{80}+1}", "10^{40}"),
    (r"\sqrt{10^{80}+1}", r"\sqrt{10^{80}+2}"), (r"2^{-160}\sqrt{2}", r"2^{-160}\sqrt{3}"), (r"\frac{e}{10^{40}}", r"\frac{\pi}{10^{40}}"),
    (r"\frac{\sqrt{3}}{100!}", r"\frac{\sqrt{2}}{100!}"), ("30!", "30!+1"), ("2^{300}+1", "2^{300}+3"), (r"\sqrt{2}", "1.41421356237309"),
    (r"\sqrt{2}", r"\frac{99}{70}"), (r"\frac13", "0.3333333333"), (r"\pi", r"\frac{355}{113}"), (r"\pi", "\u03a0"), (r"\pi", r"\Pi"),
    ("262537412640768744", r"e^{\pi\sqrt{163}}"), ("23", "2**3"), ("10", "1**0"), ("15", r"1\,5"), ("78", "7$8"), ("3.14", "3$.14"),
    ("7", "0b111"), ("7", "7L"), ("7", "\u2166"), ("7.3", r"7.\overline{3}"), ("0.12", r"0.1\overline{2}"), ("100", "100_2"),
    ("5", "x=6=5"), ("5", "3+2=5"), ("2x+3", "x=2x+3"), ("2x+3", "0=2x+3"), ("y=x^2", r"y \approx x^2"), ("y=x^2", r"y \ne x^2"),
    (r"\$5", r"5\text{ cents}"), (r"\$5", "\u20ac5"), (r"\$5", r"5\text{ million dollars}"), (r"45^\circ", r"45\text{ minutes}"),
    (r"5\text{ m}", r"5\text{ m}^2"), (r"5\text{ m}", r"5\text{ cm}"), (r"2\mathrm{i}", "2"), (r"2\mathrm{e}", "2"), ("I", "E"),
    ("A", "(A) is impossible"), ("A", "(A)B"), ("A", "(A)_B"), ("parallel", "antiparallel"), ("C", r"C \text{ or } D"),
    (r"(0,1)\cup(2,3)", "(0,3)"), (r"\{1,2\}", r"\{1,2,\ldots\}"), ("(1,2)", "[1,2]"), ("3:4", "4:3"), (r"10\%", "10"),
    (r"\pm 3", "3"), (r"x \ge 3", "x > 3"), ("x^2", r"x^2+10^{-100}"), (r"\sin x", r"\sin(x+10^{-80})"),
)  # fmt: skip

SENTENCES = (r"So we conclude that \boxed{@}.", r"Hence $\boxed{@}$", r"\[\boxed{@}\]", r"therefore \fbox{@}")


def sample(count: int, seed: int = 0) -> Iterator[tuple[str, str, str, bool]]:
    """(kind, answer, response, whether it is right) of `count` answers, two fifths of them right."""
    generator = random.Random(seed)
    answers = list(VALUES)
    for place in range(count):
        answer = generator.choice(answers)
        spelled = generator.choice((answer, *VALUES[answer]))
        sentence = generator.choice(SENTENCES)
        match place % 5:
            case 0 | 1:
                kind, stated, right = "spelling", spelled, True
            case 2:
                kind, stated, right = "decorated", generator.choice(DECORATIONS).replace("@", answer), False
            case 3:
                other = generator.choice([each for each in answers if each != answer])
                pair = [answer, other]
                generator.shuffle(pair)
                kind, stated, right = "joined", f" {generator.choice(JOINTS)} ".join(pair), False
            case _:
                kind, right = "near", False
                answer, stated = generator.choice(NEAR)
        yield kind, answer, sentence.replace("@", stated), right
