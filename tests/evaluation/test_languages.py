# ruff: noqa: E501
from __future__ import annotations

import pytest

from isodistill.evaluation.languages import LANGUAGES, other_language, speaks

# The first article of the Universal Declaration of Human Rights, or a part of it.
ARTICLE = {
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا بروح الإخاء.",
    "bg": "Всички хора се раждат свободни и равни по достойнство и права. Те са надарени с разум и съвест и следва да се отнасят помежду си в дух на братство.",
    "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia.",
    "fa": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند. همه دارای عقل و وجدان هستند و باید نسبت به یکدیگر با روح برادری رفتار کنند.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki ja omatunto.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience.",
    "gu": "પ્રતિષ્ઠા અને અધિકારોની દૃષ્ટિએ સર્વ માનવો જન્મથી સ્વતંત્ર અને સમાન હોય છે.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "kn": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ.",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ml": "മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടും അന്തസ്സോടും സ്വാതന്ത്ര്യത്തോടുംകൂടി ജനിച്ചവരാണ്.",
    "mr": "सर्व मानवी व्यक्ति जन्मतः स्वतंत्र आहेत व त्यांना समान प्रतिष्ठा व समान अधिकार आहेत. त्यांना विचारशक्ती आणि सदसद्विवेकबुद्धी लाभलेली आहे.",
    "ne": "सबै व्यक्तिहरू जन्मजात स्वतन्त्र हुन् र तिनीहरूको समान अधिकार र महत्व छ। निजहरूमा विचार शक्ति र सद्विचार भएको हुनाले निजहरूले आपसमा भातृत्वको भावनाबाट व्यवहार गर्नु पर्छ।",
    "pa": "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ, ਸ਼ਾਨ ਅਤੇ ਹੱਕਾਂ ਦੇ ਪੱਖੋਂ ਜਨਮ ਤੋਂ ਹੀ ਆਜ਼ਾਦ ਹੈ।",
    "pl": "Wszyscy ludzie rodzą się wolni i równi w swojej godności i prawach. Są obdarzeni rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa. To jest prawo.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência, devem agir uns para com os outros em espírito de fraternidade.",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах. Они наделены разумом и совестью и должны поступать в отношении друг друга в духе братства. Это право.",
    "sw": "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa. Wote wamejaliwa akili na dhamiri, hivyo yapasa watendeane kindugu.",
    "ta": "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "te": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును సమానులును నగుదురు.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і совістю і повинні діяти у відношенні один до одного в дусі братерства.",
    "ur": "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔ انہیں ضمیر اور عقل ودیعت ہوئی ہے۔",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi con người đều được tạo hoá ban cho lý trí và lương tâm và cần phải đối xử với nhau trong tình anh em.",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
}  # fmt: skip


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_a_text_is_told_from_every_other_language(language: str) -> None:
    assert [other for other, text in ARTICLE.items() if speaks(text, language)] == [language]


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_another_language_is_named_only_where_it_is_clear(language: str) -> None:
    for prompt, text in ARTICLE.items():
        expected = (None,) if prompt == language else (None, (language, prompt))
        assert other_language(ARTICLE[language], text) in expected
        assert other_language(ARTICLE[language] * 3, text) in expected
    assert other_language(ARTICLE[language], "12 + 3 = ?") is None
    assert other_language("12 + 3 = 15!", ARTICLE[language]) is None


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("fr", "Le boulanger remplit 6 plateaux de 4 pains. Puis il en vend 5 dans la boutique, et il en reste 19."),
        (
            "de",
            "Die Bäckerei füllt 6 Bleche mit 4 Broten, das sind 24. Sie verkauft 5 von den 24, und es ist 19 der Rest.",
        ),
        ("es", "El panadero llena 6 bandejas con 4 panes, que son 24. Se venden 5 de los 24 y quedan 19 en la tienda."),
    ],
)
def test_a_short_trace_is_enough_though_it_ends_as_asked(language: str, text: str) -> None:
    prompt = "A baker fills 6 trays with 4 rolls each. Then 5 rolls are sold. How many rolls are left?"
    assert other_language(f"{text} The answer is 19.", prompt) == (language, "en")
    assert (
        other_language("The 6 trays of 4 are 24 rolls in all. That is 19 with 5 sold. The answer is 19.", prompt)
        is None
    )


def test_what_says_nothing_against_a_language_passes() -> None:
    assert speaks("12 + 3 = 15!", "th")
    assert speaks("OK", "fi")
    assert not speaks("OK", "th")
