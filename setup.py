"Everything that setuptools needs is in settings.ini."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]


def readme():
    "README.md, whose links lead somewhere also where there is no repository around it."
    text, at = (here / "README.md").read_text(encoding="utf-8"), f"{cfg['git_url']}/{{}}/{cfg['branch']}/"
    text = re.sub(r"(!\[[^]]*\]\()(?![a-z]+:|#)", r"\1" + at.format("raw"), text)
    return re.sub(r"((?<!!)\[[^]]*\]\()(?![a-z]+:|#)", r"\1" + at.format("blob"), text)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme(),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Natural Language :: English",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["tinyq", "tinyq.*"]),
    package_data={"tinyq": ["tiny_lm/*"]},
    include_package_data=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("fast", "chapters", "dev", "bench")},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
